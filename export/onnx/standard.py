"""This file holds the operations of a graph for any runtime: no operator is outside the ONNX standard, opset 25.

Weights are UINT2 tensors that `DequantizeLinear` widens; activations are rounded by standard operators as
`nanochat.ternary.quantize_activations` does, and multiplied in float32.

In ONNX Runtime, set the session option ``session.disable_quant_qdq`` to ``"1"`` (`SESSION_CONFIG`): weights are then
widened once, when the graph is loaded, and not in every call. The same holds for onnxruntime-web, where it is
``extra: { session: { disable_quant_qdq: "1" } }``.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnx

from nanochat import ternary
from nanochat.export.onnx.graph import Graph, Value
from nanochat.export.onnx.leaves import BLOCK, Parameter
from nanochat.export.onnx.ops import PACKED, OnnxOps
from nanochat.export.onnx.state import OnnxState
from nanochat.ops import Slot
from nanochat.rotary import Rotation
from nanochat.weights import Dense, Ternary

__all__ = ["SESSION_CONFIG", "StandardOps"]

# ruff: noqa: ARG002 - every operation is specified in `nanochat.ops.Ops`.

# Entries of an ONNX Runtime session's configuration with which it is fast.
SESSION_CONFIG: Mapping[str, str] = {"session.disable_quant_qdq": "1"}

# The first with UINT2 for DequantizeLinear.
_OPSET = 25
# A block whose magnitudes are all below this counts as zeros; divided by it, 127 is finite.
_SMALLEST = 2.0**-119


class StandardOps(OnnxOps):
    """`OnnxOps` without an operator of any one runtime."""

    def __init__(self) -> None:
        super().__init__(opset=_OPSET)
        # What is rounded already, by the name of the value that it is made from.
        self._rounded: dict[str, Value] = {}
        self._wide: dict[str, Value] = {}

    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> "StandardState":
        return StandardState(self.graph, slots, self.input_ids, capacity=capacity)

    def product(self, x: Value, linear: Parameter) -> Value:
        weight = self._widened(linear)
        shape = (*x.shape[:-1], linear.shape[0])
        return self.graph.node(
            "MatMul", self.rounded(x), self.graph.transpose(weight, 1, 0), shape=shape
        )

    def _widened(self, linear: Parameter) -> Value:
        """The numbers that codes stand for, (R, C)."""
        if linear.name not in self._wide:
            codes, scales, zero = self._tensors(linear)
            self._wide[linear.name] = self.graph.node(
                "DequantizeLinear",
                *(codes, scales, zero),
                shape=linear.shape,
                axis=1,
                block_size=BLOCK,
            )
        return self._wide[linear.name]

    def rounded(self, x: Value) -> Value:
        """``rint(x * (127 / max |x|)) * (max |x| / 127)`` in each block of x."""
        if x.name not in self._rounded:
            graph = self.graph
            largest_code = graph.literal(np.array(127, np.float32))
            smallest = graph.literal(np.array(_SMALLEST, np.float32))
            shape = (*x.shape[:-1], ternary.num_blocks(x.size(-1), BLOCK), BLOCK)
            blocks = graph.reshape(x, shape)
            largest = graph.reduce("ReduceMax", graph.unary("Abs", blocks), -1)
            inverse = graph.binary("Div", largest_code, graph.binary("Max", largest, smallest))
            codes = graph.unary("Round", graph.binary("Mul", blocks, inverse))
            values = graph.binary("Mul", codes, graph.binary("Div", largest, largest_code))
            self._rounded[x.name] = graph.reshape(values, x.shape)
        return self._rounded[x.name]

    def embed(self, tokens: Value, table: Parameter) -> Value:
        graph = self.graph
        columns = table.shape[1]
        if isinstance(table.leaf, Dense):
            return graph.node("Gather", table.dense(graph), tokens, shape=(*tokens.shape, columns))
        if isinstance(table.leaf, Ternary):
            # No runtime looks up pairs of bits.
            shape = (*tokens.shape, columns)
            return graph.node("Gather", self._widened(table), tokens, shape=shape)
        codes, scales, _ = self._tensors(table)
        rows = graph.node("Gather", codes, tokens, shape=(*tokens.shape, columns))
        zero = graph.literal(np.array(128, np.float32))
        numbers = graph.binary("Sub", graph.cast(rows, np.float32), zero)
        blocks = (*tokens.shape, columns // BLOCK, BLOCK)
        factors = graph.node("Gather", scales, tokens, shape=blocks[:-1])
        x = graph.binary("Mul", graph.reshape(numbers, blocks), graph.unsqueeze(factors, -1))
        return graph.reshape(x, (*tokens.shape, columns))

    def rope(
        self,
        x: Value,
        *,
        rotation: Rotation,
        state: OnnxState | None,
        segments: Value | None = None,
    ) -> Value:
        assert segments is None, PACKED
        assert isinstance(state, StandardState)
        heads = x.size(2)
        flat = self.merge_heads(x)
        y = self.graph.node(
            "RotaryEmbedding",
            flat,
            *state.tables(rotation),
            shape=flat.shape,
            num_heads=heads,
            # 0 is all features.
            rotary_embedding_dim=rotation.dims if rotation.dims < x.size(3) else 0,
        )
        return self.split_heads(y, heads)

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
        assert isinstance(state, StandardState)
        graph = self.graph
        heads, kv_heads, features = q.size(2), k.size(2), q.size(3)
        sharing = heads // kv_heads
        # ONNX Runtime has no kernel for this version of `Attention`, and would run 60 nodes instead.
        present = ("batch", kv_heads, "total", features)
        keys, values = (
            graph.node("Concat", past, graph.transpose(x, 0, 2, 1, 3), shape=present, axis=2)
            for past, x in zip(state.past(slot), (k, v), strict=True)
        )
        state.keep(slot, keys, values)
        scale = graph.literal(np.array(1 / math.sqrt(features), np.float32))
        groups = graph.reshape(
            graph.binary("Mul", self.merge_heads(q), scale),
            ("batch", "tokens", kv_heads, sharing, features),
        )
        scores = graph.matmul(
            graph.transpose(groups, 0, 2, 3, 1, 4),
            graph.unsqueeze(graph.transpose(keys, 0, 1, 3, 2), 2),
        )
        shares = graph.unary("Softmax", graph.binary("Add", scores, state.visible))
        y = graph.matmul(shares, graph.unsqueeze(values, 2))
        merged = ("batch", "tokens", heads * features)
        return self.split_heads(graph.reshape(graph.transpose(y, 0, 3, 1, 2, 4), merged), heads)

    def convolution(self, x: Value, kernel: Value, past: Value) -> Value:
        graph = self.graph
        features = x.size(1)
        both = graph.concat(past, x, axis=2, length="extended")
        y = graph.node("Conv", both, kernel, shape=x.shape, group=features)
        return self.gate(y, y)

    def recurrence(
        self, q: Value, k: Value, v: Value, beta: Value, log_decay: Value, past: Value
    ) -> tuple[Value, Value]:
        graph = self.graph
        heads, values = v.size(2), v.size(3)
        rows = [graph.unsqueeze(x, 3) for x in (q, k, v)]
        decay = graph.unary("Exp", log_decay)
        numbers = [graph.unsqueeze(graph.unsqueeze(x, 3), 4) for x in (decay, beta)]
        present, y = graph.nodes(
            "Scan",
            past,
            *rows,
            *numbers,
            shapes=[past.shape, ("batch", "tokens", heads, 1, values)],
            body=_delta_step(q.size(3), heads, values),
            num_scan_inputs=5,
            scan_input_axes=[1] * 5,
            scan_output_axes=[1],
        )
        return graph.reshape(y, ("batch", "tokens", heads, values)), present

    def _tensors(self, linear: Parameter) -> tuple[Value, Value, Value]:
        """Codes (R, C), scales and zero points (R, blocks)."""
        graph, name, tensors = self.graph, linear.name, linear.integers()
        shape = tensors.scales.shape
        scales = graph.constant(f"{name}.scales", tensors.scales)
        if tensors.bits == 8:
            codes = graph.constant(f"{name}.codes", tensors.codes)
            return codes, scales, graph.constant(f"{name}.zeros", np.full(shape, 128, np.uint8))
        # Four zero points of 2 to a byte.
        zeros = np.full(-(-shape[0] * shape[1] // 4), 0xAA, np.uint8)
        return (
            graph.packed_constant(f"{name}.codes", tensors.codes, linear.shape),
            scales,
            graph.packed_constant(f"{name}.zeros", zeros, shape),
        )


class StandardState(OnnxState):
    """`OnnxState` with the angles and the mask that standard operators take."""

    @cached_property
    def visible(self) -> Value:
        """0 where a token of this call sees one of all tokens, else -inf, (batch, 1, 1, tokens, total)."""
        graph = self.graph
        zero, one = graph.literal(np.array(0)), graph.literal(np.array(1))
        past = graph.binary("Sub", self.total, graph.node("Squeeze", self.count, shape=()))
        queries = graph.node("Range", past, self.total, one, shape=("tokens",))
        keys = graph.node("Range", zero, self.total, one, shape=("total",))
        causal = graph.binary("LessOrEqual", keys, graph.unsqueeze(queries, 1))
        real = graph.node(
            "Unsqueeze",
            graph.cast(self.mask, np.bool_),
            graph.indices(1, 2, 3),
            shape=("batch", 1, 1, 1, "total"),
        )
        numbers = [graph.literal(np.array(x, np.float32)) for x in (0, -np.inf)]
        seen = graph.binary("And", real, causal)
        return graph.node("Where", seen, *numbers, shape=seen.shape)

    def angle_positions(self) -> Value:
        """Those of each token of this call, (batch, tokens)."""
        graph = self.graph
        one = graph.literal(np.array(1))
        counted = graph.node("CumSum", self.of_call, one, shape=("batch", "tokens"))
        before = graph.binary("Sub", counted, one)
        return graph.cast(graph.binary("Add", before, self.earlier), np.float32)


def _delta_step(features: int, heads: int, values: int) -> onnx.GraphProto:
    """One token of the gated delta rule: the state and what is read from it, of the state before and q, k, v."""
    graph = Graph(prefix="delta_")
    shapes = {
        "state": ("batch", heads, features, values),
        "q": ("batch", heads, 1, features),
        "k": ("batch", heads, 1, features),
        "v": ("batch", heads, 1, values),
        "decay": ("batch", heads, 1, 1),
        "beta": ("batch", heads, 1, 1),
    }
    state, q, k, v, decay, beta = (
        graph.input(f"delta_{name}", shape, dtype=np.float32) for name, shape in shapes.items()
    )
    decayed = graph.binary("Mul", state, decay)
    error = graph.binary("Sub", v, graph.matmul(k, decayed))
    change = graph.binary("Mul", graph.transpose(k, 0, 1, 3, 2), graph.binary("Mul", error, beta))
    new = graph.binary("Add", decayed, change)
    graph.output(new, "delta_new_state")
    graph.output(graph.matmul(q, new), "delta_y")
    return graph.body("delta_step")
