"""This file holds the operations that write themselves into an ONNX graph instead of computing.

`OnnxOps` is a backend whose arrays are values of a graph, so one call of `nanochat.model.forward` writes the whole
model. Here are those that are the same for every runtime; `nanochat.export.onnx.ort` and
`nanochat.export.onnx.standard` add the products, attention and Gated DeltaNet.

Names of dimensions: ``batch`` sequences, ``tokens`` of this call, ``past`` tokens before them, ``total`` of both.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat.blocks.plain import plain
from nanochat.config import Activation, Mixer
from nanochat.draws import Drawn, Draws
from nanochat.export.onnx.graph import Graph, Value
from nanochat.export.onnx.leaves import Parameter, dense_product, joined
from nanochat.export.onnx.mhc import Coefficients, dynamic_coefficients, static_coefficients
from nanochat.export.onnx.state import OnnxState
from nanochat.init import freeze
from nanochat.ops import Slot, feed_forward
from nanochat.rotary import Rotation
from nanochat.weights import Dense, FeedForward, Mhc, Stored, Weights, map_leaves

__all__ = ["PACKED", "OnnxOps"]

# ruff: noqa: ARG002 - every operation is specified in `nanochat.ops.Ops`; some have no meaning in a graph.


# Why a graph takes no `segments`.
PACKED = "a graph has no packed rows: they are for training"


class OnnxOps(ABC):
    """`nanochat.ops.Ops` on the values of one graph; always with a state."""

    name = "onnx"
    is_exact = False
    # Where the graph will run is not known here.
    device = "cpu"
    free_bytes = None

    @property
    def details(self) -> dict[str, object]:
        return {}

    def __init__(self, *, opset: int) -> None:
        self.graph = Graph(opset=opset)
        self.input_ids = self.graph.input("input_ids", ("batch", "tokens"), dtype=np.int64)

    # What differs between targets.

    @abstractmethod
    def new_state(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> OnnxState:
        """Declare the remembered arrays as inputs; how many sequences there are is free in a graph, and kept even."""

    @abstractmethod
    def product(self, x: Value, linear: Parameter) -> Value:
        """``x @ w.T`` for a linear or table that is not dense."""

    @abstractmethod
    def embed(self, tokens: Value, table: Parameter) -> Value: ...

    @abstractmethod
    def rope(
        self,
        x: Value,
        *,
        rotation: Rotation,
        state: OnnxState | None,
        segments: Value | None = None,
    ) -> Value: ...

    @abstractmethod
    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        *,
        state: OnnxState | None,
        slot: int,
        segments: Value | None = None,
    ) -> Value: ...

    @abstractmethod
    def convolution(self, x: Value, kernel: Value, past: Value) -> Value:
        """``short_conv`` of x, (batch, features, tokens), with a kernel of (features, 1, taps), after `past`."""

    @abstractmethod
    def recurrence(
        self, q: Value, k: Value, v: Value, beta: Value, log_decay: Value, past: Value
    ) -> tuple[Value, Value]:
        """What a delta rule gives and remembers, for scaled q and k, and beta and decay, (batch, tokens, heads)."""

    # The border.

    def prepare(self, weights: Weights[Stored]) -> Weights[Parameter]:
        return map_leaves(
            lambda name, leaf: Parameter(name=name, leaf=plain(leaf)), freeze(weights)
        )

    def tokens(self, ids: NDArray[np.int64]) -> Value:
        raise _meaningless("tokens")

    def array(self, values: NDArray[np.float32]) -> Value:
        return self.graph.literal(values)

    def numpy(self, x: Value) -> NDArray[np.float32]:
        raise _meaningless("numpy")

    # Norms, linears.

    def rms_norm(self, x: Value, gain: Parameter, *, eps: float) -> Value:
        return self.graph.rms_norm(x, gain.dense(self.graph), eps=eps)

    def project(self, x: Value, *linears: Parameter) -> tuple[Value, ...]:
        whole = joined(linears)
        if whole is None:
            return tuple(self._project(x, linear) for linear in linears)
        y = self._project(x, whole)
        if len(linears) == 1:
            return (y,)
        return self.graph.split(y, [linear.shape[0] for linear in linears])

    def _project(self, x: Value, linear: Parameter) -> Value:
        if isinstance(linear.leaf, Dense):
            return dense_product(self.graph, x, linear)
        return self.product(x, linear)

    def rotate(self, x: Value, signs: Parameter, *, block: int, inverse: bool) -> Value:
        graph = self.graph
        y = x if inverse else graph.binary("Mul", x, signs.dense(graph))
        # The matrix of a block is the Kronecker product of two smaller ones.
        rows = 1 << (block.bit_length() - 1) // 2
        sizes = rows, block // rows
        parts = (*x.shape[:-1], x.size(-1) // block, *sizes)
        left, right = (graph.literal(_hadamard(size)) for size in sizes)
        y = graph.matmul(graph.matmul(left, graph.reshape(y, parts)), right)
        y = graph.reshape(y, x.shape)
        return graph.binary("Mul", y, signs.dense(graph)) if inverse else y

    def scale(self, x: Value, factor: float) -> Value:
        return self.graph.binary("Mul", x, self.graph.literal(np.array(factor, np.float32)))

    def add(self, x: Value, y: Value) -> Value:
        return self.graph.binary("Add", x, y)

    def parameter(self, leaf: Parameter) -> Value:
        return leaf.dense(self.graph)

    def last(self, x: Value, *, state: OnnxState | None) -> Value:
        graph = self.graph
        bounds = graph.indices(-1), graph.indices(np.iinfo(np.int64).max), graph.indices(1)
        return graph.node("Slice", x, *bounds, shape=(x.shape[0], 1, *x.shape[2:]))

    def split_heads(self, x: Value, heads: int) -> Value:
        return self.graph.reshape(x, (*x.shape[:-1], heads, x.size(-1) // heads))

    def merge_heads(self, x: Value) -> Value:
        shape = (*x.shape[:-2], x.size(-2) * x.size(-1))
        split = self.graph.producer(x)
        if split is not None and split.op == "Reshape":
            whole = split.inputs[0]
            assert whole is not None
            if whole.shape == shape:
                return whole
        return self.graph.reshape(x, shape)

    def append_kv(self, k: Value, v: Value, *, state: OnnxState, slot: int) -> None:
        raise _meaningless("append_kv")

    # Gated DeltaNet.

    def short_conv(
        self,
        x: Value,
        kernel: Parameter,
        *,
        state: OnnxState | None,
        slot: int,
        segments: Value | None = None,
    ) -> Value:
        assert segments is None, PACKED
        assert state is not None
        graph = self.graph
        features, taps = kernel.shape
        swapped = graph.transpose(x, 0, 2, 1)
        weight = graph.constant(kernel.name, kernel.dense_values().reshape(features, 1, taps))
        (past,) = state.past(slot)
        state.keep_inputs(slot, swapped)
        return graph.transpose(self.convolution(swapped, weight, past), 0, 2, 1)

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
        segments: Value | None = None,
    ) -> Value:
        assert segments is None, PACKED
        assert state is not None
        graph = self.graph
        features, share = q.size(3), v.size(2) // q.size(2)
        # x / sqrt(sum(x**2) + 1e-6) is an RMS norm of gain 1 / sqrt(K) whose eps is K times smaller.
        root = np.full(features, 1 / math.sqrt(features), np.float32)
        eps = 1e-6 / features
        q = graph.rms_norm(q, graph.literal(root * root), eps=eps)
        k = graph.rms_norm(k, graph.literal(root), eps=eps)
        if share > 1:
            q, k = (self._repeated(x, share) for x in (q, k))
        time = graph.unary("Softplus", graph.binary("Add", decay, time_bias.dense(graph)))
        rate = graph.literal(-np.exp(log_rate.dense_values()))
        # Padding forgets nothing and adds nothing.
        valid = state.valid
        log_decay = graph.binary("Mul", graph.binary("Mul", time, rate), valid)
        strength = graph.binary("Mul", graph.unary("Sigmoid", beta), valid)
        (past,) = state.past(slot)
        y, present = self.recurrence(q, k, v, strength, log_decay, past)
        state.keep(slot, present)
        return y

    def _repeated(self, x: Value, share: int) -> Value:
        """Each head of (batch, tokens, heads, features) so many times."""
        graph = self.graph
        batch, tokens, heads, features = x.shape
        copies = graph.node(
            "Expand",
            graph.unsqueeze(x, 3),
            graph.indices(1, 1, 1, share, 1),
            shape=(batch, tokens, heads, share, features),
        )
        return graph.reshape(copies, (batch, tokens, x.size(2) * share, features))

    # Networks.

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
        networks: Sequence[FeedForward[Parameter]],
        *,
        top_k: int,
        activation: Activation,
        eps: float,
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
            places = graph.transpose(places, 1, 0)
            share = graph.node("GatherND", shares, places, shape=("hits",))
            token, _ = graph.nodes("Split", places, shapes=[("hits", 1)] * 2, axis=1, num_outputs=2)
            own = graph.node("GatherND", rows, token, shape=("hits", x.shape[-1]))
            y = feed_forward(own, network, self, activation=activation, eps=eps)
            y = graph.binary("Mul", y, graph.unsqueeze(share, -1))
            out = graph.node("ScatterND", out, token, y, shape=out.shape, reduction="add")
        return graph.node("Reshape", out, graph.node("Shape", x, shape=(3,)), shape=x.shape)

    # mHC. ONNX Runtime's own HyperConnection operators are 7 times slower for one token, and 50 times for 256.

    def mhc_open(self, x: Value, num_streams: int) -> Value:
        batch, tokens, features = x.shape
        shape = (batch, tokens, num_streams, features)
        copies = self.graph.indices(1, 1, num_streams, 1)
        return self.graph.node("Expand", self.graph.unsqueeze(x, 2), copies, shape=shape)

    def mhc_read(
        self, streams: Value, site: Mhc[Parameter], *, mixer: Mixer, iterations: int, eps: float
    ) -> Coefficients:
        graph, n = self.graph, streams.size(2)
        batch, tokens, _, features = streams.shape
        if site.projection is None:
            reading, writing, mixing = static_coefficients(site, n, mixer, iterations)
            u = graph.node(
                "MatMul", graph.literal(reading), streams, shape=(batch, tokens, features)
            )
            # What is written is one product with the streams and, as one more, the network's result.
            both = np.concatenate([mixing, writing[:, None]], axis=1)
            return u, graph.literal(writing), graph.literal(both)
        read, post, mix = dynamic_coefficients(graph, streams, site, mixer, iterations, eps)
        u = graph.matmul(graph.unsqueeze(read, -2), streams)
        return graph.reshape(u, (batch, tokens, features)), post, mix

    def mhc_write(self, streams: Value, y: Value, post: Value, mix: Value | None) -> Value:
        graph = self.graph
        if mix is not None and mix.size(-1) > streams.size(2):
            more = graph.concat(streams, graph.unsqueeze(y, -2), axis=2, length=mix.size(-1))
            return graph.matmul(mix, more)
        mixed = streams if mix is None else graph.matmul(mix, streams)
        written = graph.binary("Mul", graph.unsqueeze(post, -1), graph.unsqueeze(y, -2))
        return graph.binary("Add", mixed, written)

    def mhc_close(self, streams: Value) -> Value:
        return self.graph.reduce("ReduceMean", streams, 2, keep=False)

    # Adaptive depth.

    def survival(self, previous: Value | None, logits: Value) -> Value:
        raise _meaningless("survival")

    def loop(self, x: Value, *_: object, steps: int, threshold: float) -> Value:
        raise _meaningless("loop")

    def select(self, mask: Value, yes: Value, no: Value) -> Value:
        raise _meaningless("select")

    def sample(self, logits: Value, draws: Draws) -> Drawn:
        raise _meaningless("sample")

    # Loss.

    def cross_entropy(
        self, x: Value, table: Parameter, targets: Value, weights: Value | None = None
    ) -> Value:
        raise _meaningless("cross_entropy")

    # Weights that move.

    def replace(self, weights: Weights[Parameter], name: str, leaf: Stored) -> Weights[Parameter]:
        raise _meaningless("replace")


def _hadamard(size: int) -> NDArray[np.float32]:
    """The normalised matrix of Sylvester's construction."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


def _meaningless(operation: str) -> AssertionError:
    return AssertionError(
        f"{operation} has no meaning in a graph: an exported model never calls it"
    )
