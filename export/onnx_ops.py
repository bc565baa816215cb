"""This file holds the operations that write themselves into an ONNX graph instead of computing.

`OnnxOps` is a backend whose arrays are values of a graph, so one call of `nanochat.model.forward` writes the whole
model. The target is ONNX Runtime: integer linears become its `MatMulNBits` in the one configuration that computes the
numerics contract. Any other would run a float kernel, over 100 times slower, without a word.

Names of dimensions: ``batch`` sequences, ``tokens`` of this call, ``past`` tokens before them, ``total`` of both.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat.config import Mixer
from nanochat.export.onnx_graph import CONTRIB, Graph, Value
from nanochat.export.onnx_leaves import BLOCK, Parameter, project
from nanochat.export.onnx_mhc import dynamic_coefficients, static_coefficients
from nanochat.export.onnx_state import OnnxState
from nanochat.init import freeze
from nanochat.ops import Slot
from nanochat.weights import Dense, Mhc, Stored, Weights, map_leaves

__all__ = ["OnnxOps"]

# ruff: noqa: ARG002, D102 - every operation is specified in `nanochat.ops.Ops`; some have no meaning in a graph.


class OnnxOps:
    """`nanochat.ops.Ops` on the values of one graph; always with a state."""

    name = "onnx"

    def __init__(self) -> None:
        self.graph = Graph()
        self.input_ids = self.graph.input("input_ids", ("batch", "tokens"), dtype=np.int64)

    def prepare(self, weights: Weights[Stored]) -> Weights[Parameter]:
        return map_leaves(lambda name, leaf: Parameter(name=name, leaf=leaf), freeze(weights))

    def tokens(self, ids: NDArray[np.int64]) -> Value:
        raise _meaningless("tokens")

    def array(self, values: NDArray[np.float32]) -> Value:
        return self.graph.literal(values)

    def numpy(self, x: Value) -> NDArray[np.float32]:
        raise _meaningless("numpy")

    def new_state(self, slots: Sequence[Slot], *, batch: int, capacity: int) -> OnnxState:
        """Declare the remembered arrays as inputs; `batch` and `capacity` are free in a graph."""
        return OnnxState(self.graph, slots, self.input_ids)

    def stack(self, states: Sequence[OnnxState]) -> OnnxState:
        raise _meaningless("stack")

    def advance(self, state: OnnxState, tokens: Value) -> None:
        """Do nothing: the caller lengthens ``attention_mask``."""

    def embed(self, tokens: Value, table: Parameter) -> Value:
        graph = self.graph
        columns = table.shape[1]
        if isinstance(table.leaf, Dense):
            return graph.node("Gather", table.dense(graph), tokens, shape=(*tokens.shape, columns))
        # The tensors are those that a tied head multiplies with, so the file holds the table once.
        tensors = table.integers(graph)
        shape = (*tokens.shape, columns // BLOCK, BLOCK)
        rows = graph.node("Gather", tensors.codes, tokens, shape=shape)
        zero = graph.literal(np.array(128, np.float32))
        codes = graph.binary("Sub", graph.cast(rows, np.float32), zero)
        scales = graph.node("Gather", tensors.scales, tokens, shape=shape[:-1])
        x = graph.binary("Mul", codes, graph.unsqueeze(scales, -1))
        return graph.reshape(x, (*tokens.shape, columns))

    def rms_norm(self, x: Value, gain: Parameter, *, eps: float) -> Value:
        return self.graph.rms_norm(x, gain.dense(self.graph), eps=eps)

    def project(self, x: Value, *linears: Parameter) -> tuple[Value, ...]:
        return tuple(project(self.graph, x, linear) for linear in linears)

    def add(self, x: Value, y: Value) -> Value:
        return self.graph.binary("Add", x, y)

    def parameter(self, leaf: Parameter) -> Value:
        return leaf.dense(self.graph)

    def last(self, x: Value) -> Value:
        graph = self.graph
        bounds = graph.indices(-1), graph.indices(np.iinfo(np.int64).max), graph.indices(1)
        return graph.node("Slice", x, *bounds, shape=(x.shape[0], 1, *x.shape[2:]))

    def split_heads(self, x: Value, heads: int) -> Value:
        return self.graph.reshape(x, (*x.shape[:-1], heads, x.size(-1) // heads))

    def merge_heads(self, x: Value) -> Value:
        return self.graph.reshape(x, (*x.shape[:-2], x.size(-2) * x.size(-1)))

    def rope(self, x: Value, *, theta: float, state: OnnxState | None) -> Value:
        assert state is not None
        heads, half = x.size(2), x.size(3) // 2
        flat = self.merge_heads(x)
        cos, sin = state.rotation(theta, half)
        y = self.graph.node("RotaryEmbedding", flat, cos, sin, shape=flat.shape, num_heads=heads)
        return self.split_heads(y, heads)

    def attention(
        self, q: Value, k: Value, v: Value, *, state: OnnxState | None, slot: int
    ) -> Value:
        assert state is not None
        past_keys, past_values = state.past(slot)
        heads, kv_heads = q.size(2), k.size(2)
        flat = [self.merge_heads(x) for x in (q, k, v)]
        present = ("batch", kv_heads, "total", k.shape[3])
        y, keys, values = self.graph.nodes(
            "Attention",
            *flat,
            state.visible(),
            past_keys,
            past_values,
            shapes=[flat[0].shape, present, present],
            q_num_heads=heads,
            kv_num_heads=kv_heads,
        )
        state.remember(slot, keys, values)
        return self.split_heads(y, heads)

    def remember(self, k: Value, v: Value, *, state: OnnxState, slot: int) -> None:
        raise _meaningless("remember")

    def short_conv(
        self, x: Value, kernel: Parameter, *, state: OnnxState | None, slot: int
    ) -> Value:
        assert state is not None
        graph = self.graph
        features, taps = kernel.shape
        # Padding stands on the left, where a sequence of its own length would have zeros.
        x = graph.binary("Mul", x, state.valid())
        swapped = graph.node("Transpose", x, shape=("batch", features, "tokens"), perm=[0, 2, 1])
        weight = graph.constant(kernel.name, kernel.dense_values().reshape(features, 1, taps))
        (past,) = state.past(slot)
        y, present = graph.nodes(
            "CausalConvWithState",
            swapped,
            weight,
            None,
            past,
            shapes=[swapped.shape, past.shape],
            domain=CONTRIB,
            activation="silu",
        )
        state.remember(slot, present)
        return graph.node("Transpose", y, shape=x.shape, perm=[0, 2, 1])

    def delta_rule(
        self,
        q: Value,
        k: Value,
        v: Value,
        beta: Value,
        decay: Value,
        log_rate: Parameter,
        time_bias: Parameter,
        *,
        state: OnnxState | None,
        slot: int,
    ) -> Value:
        assert state is not None
        graph = self.graph
        heads, features = q.size(2), q.size(3)
        # x / sqrt(sum(x**2) + 1e-6) is an RMS norm of gain 1 / sqrt(K) whose eps is K times smaller.
        root = np.full(features, 1 / math.sqrt(features), np.float32)
        eps = 1e-6 / features
        q = graph.rms_norm(q, graph.literal(root * root), eps=eps)
        k = graph.rms_norm(k, graph.literal(root), eps=eps)
        time = graph.unary("Softplus", graph.binary("Add", decay, time_bias.dense(graph)))
        rate = graph.literal(-np.exp(log_rate.dense_values()))
        flat = [self.merge_heads(x) for x in (q, k, v)]
        (past,) = state.past(slot)
        y, present = graph.nodes(
            "LinearAttention",
            *flat,
            past,
            graph.binary("Mul", time, rate),
            graph.unary("Sigmoid", beta),
            shapes=[flat[2].shape, past.shape],
            domain=CONTRIB,
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=1.0,
            update_rule="gated_delta",
        )
        state.remember(slot, present)
        return self.split_heads(y, heads)

    def swiglu(self, gate: Value, up: Value) -> Value:
        return self.graph.binary("Mul", self.gate(gate, gate), up)

    def relu2(self, x: Value, up: Value | None) -> Value:
        rectified = self.graph.unary("Relu", x)
        y = self.graph.binary("Mul", rectified, rectified)
        return y if up is None else self.graph.binary("Mul", y, up)

    def gate(self, x: Value, logits: Value) -> Value:
        return self.graph.binary("Mul", x, self.graph.unary("Sigmoid", logits))

    def experts(
        self,
        x: Value,
        logits: Value,
        networks: Sequence[Callable[[Value], Value]],
        *,
        top_k: int,
    ) -> Value:
        graph = self.graph
        rows = graph.reshape(x, ("rows", x.shape[-1]))
        scores = graph.reshape(logits, ("rows", len(networks)))
        # The lower index goes first among equals, says the standard.
        best, chosen = graph.nodes(
            "TopK", scores, graph.indices(top_k), shapes=[("rows", top_k)] * 2, axis=1
        )
        shares = graph.unary("Softmax", best)
        out = graph.node("ConstantOfShape", graph.node("Shape", rows, shape=(2,)), shape=rows.shape)
        for index, network in enumerate(networks):
            expert = graph.literal(np.array(index))
            hits = graph.node("Equal", chosen, expert, shape=chosen.shape)
            places = graph.node("NonZero", hits, shape=(2, "hits"))
            places = graph.node("Transpose", places, shape=("hits", 2))
            share = graph.node("GatherND", shares, places, shape=("hits",))
            token, _ = graph.nodes("Split", places, shapes=[("hits", 1)] * 2, axis=1, num_outputs=2)
            own = graph.node("GatherND", rows, token, shape=("hits", x.shape[-1]))
            y = graph.binary("Mul", network(own), graph.unsqueeze(share, -1))
            out = graph.node("ScatterND", out, token, y, shape=out.shape, reduction="add")
        return graph.node("Reshape", out, graph.node("Shape", x, shape=(3,)), shape=x.shape)

    def mhc_open(self, x: Value, num_streams: int) -> Value:
        batch, tokens, features = x.shape
        shape = (batch, tokens, num_streams, features)
        copies = self.graph.indices(1, 1, num_streams, 1)
        return self.graph.node("Expand", self.graph.unsqueeze(x, 2), copies, shape=shape)

    def mhc_read(
        self, streams: Value, site: Mhc[Parameter], *, mixer: Mixer, iterations: int, eps: float
    ) -> tuple[Value, Value, Value | None]:
        graph, n = self.graph, streams.size(2)
        if site.projection is None:
            read, post, mix = static_coefficients(graph, site, n, mixer, iterations)
        else:
            read, post, mix = dynamic_coefficients(graph, streams, site, mixer, iterations, eps)
        u = graph.matmul(graph.unsqueeze(read, -2), streams)
        shape = (*u.shape[:2], u.shape[3])
        return graph.node("Squeeze", u, graph.indices(2), shape=shape), post, mix

    def mhc_write(self, streams: Value, y: Value, post: Value, mix: Value | None) -> Value:
        graph = self.graph
        mixed = streams if mix is None else graph.matmul(mix, streams)
        written = graph.binary("Mul", graph.unsqueeze(post, -1), graph.unsqueeze(y, -2))
        return graph.binary("Add", mixed, written)

    def mhc_close(self, streams: Value) -> Value:
        batch, tokens, _, features = streams.shape
        return self.graph.node(
            "ReduceMean",
            streams,
            self.graph.indices(2),
            shape=(batch, tokens, features),
            keepdims=0,
        )

    def survival(self, previous: Value | None, logits: Value) -> Value:
        raise _meaningless("survival")

    def at_most(self, x: Value, threshold: float) -> Value:
        raise _meaningless("at_most")

    def every(self, mask: Value) -> bool:
        raise _meaningless("every")

    def select(self, mask: Value, yes: Value, no: Value) -> Value:
        raise _meaningless("select")


def _meaningless(operation: str) -> AssertionError:
    return AssertionError(
        f"{operation} has no meaning in a graph: an exported model never calls it"
    )
