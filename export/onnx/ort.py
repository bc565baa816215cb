"""This file holds the operations of a graph for ONNX Runtime, in its own fast operators where it has some.

Integer linears become `MatMulNBits` in the one configuration that computes the numerics contract: any other would run a
float kernel, over 100 times slower, without a word. Attention is `GroupQueryAttention`, which rotates queries and keys,
and whose keys and values may stay in one buffer: an input ``past_key_values…`` that is longer than its sequence is
continued in place where it is bound as ``present…``, too.

Its sequences begin at the first place of that buffer, whatever their lengths, so padding stands on the right of each
call's tokens. A call with padding elsewhere fails in the node `nanochat.export.onnx.state.MISPLACED`.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from nanochat import ternary
from nanochat.export.onnx.graph import CONTRIB, Value
from nanochat.export.onnx.leaves import BLOCK, Parameter, block_constants, project
from nanochat.export.onnx.ops import PACKED, OnnxOps
from nanochat.export.onnx.state import OnnxState
from nanochat.ops import Slot
from nanochat.rotary import Rotation
from nanochat.weights import Dense

__all__ = ["OrtOps"]

# ruff: noqa: ARG002 - every operation is specified in `nanochat.ops.Ops`.

# Attention and RMSNormalization are standard from here on.
_OPSET = 23


class OrtOps(OnnxOps):
    """`OnnxOps` for ONNX Runtime 1.32 or newer."""

    def __init__(self) -> None:
        super().__init__(opset=_OPSET)
        # Inputs and base of what has been rotated, by the name of the result.
        self._rotated: dict[str, tuple[Value, Rotation]] = {}

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> "OrtState":
        return OrtState(self.graph, slots, self.input_ids, capacity=capacity)

    def product(self, x: Value, linear: Parameter) -> Value:
        return project(self.graph, x, linear)

    def embed(self, tokens: Value, table: Parameter) -> Value:
        graph = self.graph
        columns = table.shape[1]
        if isinstance(table.leaf, Dense):
            return graph.node("Gather", table.dense(graph), tokens, shape=(*tokens.shape, columns))
        # The tensors are those that a tied head multiplies with, so the file holds the table once.
        tensors = table.integers()
        codes, scales = block_constants(graph, table.name, tensors)
        if tensors.bits == 2:
            return self._embed_pairs(tokens, codes, scales)
        rows = graph.node(
            "GatherBlockQuantized",
            codes,
            tokens,
            graph.unsqueeze(scales, -1),
            shape=(*tokens.shape, ternary.num_blocks(columns, BLOCK), BLOCK),
            domain=CONTRIB,
            bits=8,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=2,
        )
        return graph.reshape(rows, (*tokens.shape, columns))

    def _embed_pairs(self, tokens: Value, codes: Value, scales: Value) -> Value:
        """Rows of a ternary table: `GatherBlockQuantized` has no 2 bits."""
        graph = self.graph
        _, blocks, size = codes.shape
        packed = graph.node("Gather", codes, tokens, shape=(*tokens.shape, blocks, size))
        shape = (*tokens.shape, blocks, size, 4)
        shifts = graph.literal(np.array([0, 2, 4, 6], np.uint8))
        pairs = graph.node(
            "BitShift", graph.unsqueeze(packed, -1), shifts, shape=shape, direction="RIGHT"
        )
        pairs = graph.node("BitwiseAnd", pairs, graph.literal(np.array(3, np.uint8)), shape=shape)
        numbers = graph.reshape(graph.cast(pairs, np.float32), (*tokens.shape, blocks, BLOCK))
        # A pair is code + 2.
        numbers = graph.binary("Sub", numbers, graph.literal(np.array(2, np.float32)))
        factors = graph.node("Gather", scales, tokens, shape=(*tokens.shape, blocks))
        x = graph.binary("Mul", numbers, graph.unsqueeze(factors, -1))
        return graph.reshape(x, (*tokens.shape, scales.size(-1) * BLOCK))

    def rope(
        self,
        x: Value,
        *,
        rotation: Rotation,
        state: OnnxState | None,
        segments: Value | None = None,
    ) -> Value:
        assert segments is None, PACKED
        assert isinstance(state, OrtState)
        heads = x.size(2)
        flat = self.merge_heads(x)
        y = self.graph.node(
            "RotaryEmbedding",
            flat,
            state.positions,
            *state.tables(rotation),
            shape=flat.shape,
            domain=CONTRIB,
            num_heads=heads,
            # 0 is all features.
            rotary_embedding_dim=rotation.dims if rotation.dims < x.size(3) else 0,
        )
        y = self.split_heads(y, heads)
        self._rotated[y.name] = x, rotation
        return y

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        state: OnnxState | None,
        slot: int,
        segments: Value | None = None,
    ) -> Value:
        assert segments is None, PACKED
        assert isinstance(state, OrtState)
        graph = self.graph
        heads, kv_heads, features = q.size(2), k.size(2), k.size(3)
        caches: tuple[Value, ...] = ()
        if q.name in self._rotated and k.name in self._rotated:
            # The operator rotates by itself; the nodes that did are no longer needed.
            (q, rotation), (k, _) = self._rotated[q.name], self._rotated[k.name]
            caches = state.tables(rotation)
        flat: list[Value | None] = [self.merge_heads(x) for x in (q, k, v)]
        packed = self._packed(flat)
        shape = ("batch", kv_heads, "present", features)
        y, keys, values = graph.nodes(
            "GroupQueryAttention",
            *(flat if packed is None else (packed, None, None)),
            *state.past(slot),
            state.lengths,
            state.longest,
            *(caches or (None, None)),
            # Positions, bias, sinks, scales of quantised keys and values, norms of queries and keys.
            *[None] * 7,
            state.call_lengths,
            shapes=[("batch", "tokens", heads * features), shape, shape],
            domain=CONTRIB,
            num_heads=heads,
            kv_num_heads=kv_heads,
            do_rotary=int(bool(caches)),
        )
        state.keep(slot, keys, values)
        return self.split_heads(y, heads)

    def _packed(self, parts: Sequence[Value | None]) -> Value | None:
        """The value that queries, keys and values were split from, if it has nothing else."""
        producers = [self.graph.producer(part) for part in parts if part is not None]
        wholes = [p.inputs[0] for p in producers if p is not None and p.op == "Split"]
        whole = wholes[0] if wholes else None
        if whole is None or wholes != [whole] * 3:
            return None
        size = sum(part.size(-1) for part in parts if part is not None)
        return whole if whole.size(-1) == size else None

    def gate(self, x: Value, logits: Value) -> Value:
        if x is logits:
            return self.graph.node("QuickGelu", x, shape=x.shape, domain=CONTRIB, alpha=1.0)
        return super().gate(x, logits)

    def convolution(self, x: Value, kernel: Value, past: Value) -> Value:
        y, _ = self.graph.nodes(
            "CausalConvWithState",
            x,
            kernel,
            None,
            past,
            shapes=[x.shape, past.shape],
            domain=CONTRIB,
            activation="silu",
        )
        return y

    def recurrence(
        self, q: Value, k: Value, v: Value, beta: Value, log_decay: Value, past: Value
    ) -> tuple[Value, Value]:
        heads = q.size(2)
        flat = [self.merge_heads(x) for x in (q, k, v)]
        y, present = self.graph.nodes(
            "LinearAttention",
            *flat,
            past,
            log_decay,
            beta,
            shapes=[flat[2].shape, past.shape],
            domain=CONTRIB,
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=1.0,
            update_rule="gated_delta",
        )
        return self.split_heads(y, heads), present


class OrtState(OnnxState):
    """`OnnxState` with the lengths and tables that ONNX Runtime's operators take."""

    @cached_property
    def lengths(self) -> Value:
        """Tokens of each sequence less 1, int32, (batch,)."""
        graph = self.graph
        sums = graph.reduce("ReduceSum", self.mask, 1, keep=False)
        return graph.cast(graph.binary("Sub", sums, graph.literal(np.array(1))), np.int32)

    @cached_property
    def longest(self) -> Value:
        """Tokens of the longest sequence, an int32 number; with `guard`."""
        return self.graph.cast(self.graph.binary("Add", self.total, self.guard), np.int32)

    @cached_property
    def call_lengths(self) -> Value:
        """Tokens of each sequence in this call, int32, (batch,)."""
        graph = self.graph
        counts = graph.node("Squeeze", self.counts, graph.indices(1), shape=("batch",))
        return graph.cast(counts, np.int32)

    @cached_property
    def positions(self) -> Value:
        """Where each token of this call stands in its sequence, int64, (batch, tokens)."""
        graph, before = self.graph, self.earlier
        zero, one = graph.literal(np.array(0)), graph.literal(np.array(1))
        count = graph.node("Squeeze", self.count, shape=())
        steps = graph.node("Range", zero, count, one, shape=("tokens",))
        return graph.node("Add", before, steps, shape=("batch", "tokens"))

    def angle_positions(self) -> Value:
        """All there are, (capacity,): angles are computed when the graph is loaded."""
        bounds = [self.graph.literal(np.array(i, np.float32)) for i in (0, self.capacity, 1)]
        return self.graph.node("Range", *bounds, shape=(self.capacity,))
