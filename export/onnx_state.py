"""This file holds the state of an ONNX graph: what a call is given of the calls before it, and gives to the next.

Each remembered array is a pair, an input ``past…`` and an output ``present…``, named as onnxruntime-genai names them.
A layer's number counts the layers as they run, so a looped layer has one for every step.
"""

from collections.abc import Sequence

import numpy as np

from nanochat.export.onnx_graph import Dim, Graph, Value
from nanochat.ops import Slot

__all__ = ["OnnxState", "present_name"]

_ATTENTION = ("past_key_values.{}.key", "past_key_values.{}.value")
_CONVOLUTIONS = ("past.{}.conv_q", "past.{}.conv_k", "past.{}.conv_v")
_RECURRENT = "past.{}.recurrent"


class OnnxState:
    """The remembered arrays of every slot, and where the tokens of this call stand in their sequences.

    Tokens whose ``attention_mask`` is 0 are padding; they must stand on the left. Real tokens neither see them nor
    count them, so sequences of different lengths can share a call.
    """

    def __init__(self, graph: Graph, slots: Sequence[Slot], tokens: Value) -> None:
        self._graph = graph
        self._mask = graph.input("attention_mask", ("batch", "total"), dtype=np.int64)
        self._count = graph.node("Shape", tokens, shape=(1,), start=1, end=2)
        self._names: list[tuple[str, ...]] = []
        self._pasts: list[tuple[Value, ...]] = []
        self._presents: list[tuple[str, Value]] = []
        self._valid: Value | None = None
        self._visible: Value | None = None
        self._rotations: dict[tuple[float, int], tuple[Value, Value]] = {}
        layer, convolutions = 0, 0
        for slot in slots:
            names: tuple[str, ...]
            shape: tuple[Dim, ...]
            if slot.kind == "attention":
                names, shape = _ATTENTION, ("batch", slot.heads, "past", slot.key_dim)
            elif slot.kind == "conv":
                names = (_CONVOLUTIONS[convolutions],)
                shape = ("batch", slot.features, slot.taps - 1)
            else:
                names, shape = (_RECURRENT,), ("batch", slot.heads, slot.key_dim, slot.value_dim)
            names = tuple(name.format(layer) for name in names)
            self._names.append(names)
            self._pasts.append(tuple(graph.input(n, shape, dtype=np.float32) for n in names))
            convolutions = convolutions + 1 if slot.kind == "conv" else 0
            layer += slot.kind != "conv"

    def past(self, slot: int) -> tuple[Value, ...]:
        """The arrays that the slot held before this call."""
        return self._pasts[slot]

    def remember(self, slot: int, *presents: Value) -> None:
        """Keep what the slot holds after this call."""
        self._presents += zip(self._names[slot], presents, strict=True)

    def declare_outputs(self) -> None:
        """Give all that is kept to the caller."""
        for name, value in self._presents:
            self._graph.output(value, present_name(name))

    def rotation(self, theta: float, half: int) -> tuple[Value, Value]:
        """Cosine and sine of each token's angles, (batch, tokens, half); see :meth:`nanochat.ops.Ops.rope`."""
        key = theta, half
        if key not in self._rotations:
            graph = self._graph
            one = graph.literal(np.array(1))
            before = graph.binary(
                "Sub", graph.node("CumSum", self._mask, one, shape=self._mask.shape), one
            )
            positions = graph.cast(self._of_call(before), np.float32)
            frequency = (theta ** (-np.arange(half) / half)).astype(np.float32)
            angle = graph.binary("Mul", graph.unsqueeze(positions, -1), graph.literal(frequency))
            self._rotations[key] = graph.unary("Cos", angle), graph.unary("Sin", angle)
        return self._rotations[key]

    def valid(self) -> Value:
        """1 for a token of this call and 0 for padding, float32, (batch, tokens, 1)."""
        if self._valid is None:
            mask = self._of_call(self._graph.cast(self._mask, np.float32))
            self._valid = self._graph.unsqueeze(mask, -1)
        return self._valid

    def visible(self) -> Value:
        """Which of all tokens each token of this call sees, bool, (batch, 1, tokens, total)."""
        if self._visible is None:
            graph = self._graph
            zero, one = graph.literal(np.array(0)), graph.literal(np.array(1))
            total = graph.node("Shape", self._mask, shape=(1,), start=1, end=2)
            total = graph.node("Squeeze", total, shape=())
            past = graph.binary("Sub", total, graph.node("Squeeze", self._count, shape=()))
            queries = graph.node("Range", past, total, one, shape=("tokens",))
            keys = graph.node("Range", zero, total, one, shape=("total",))
            causal = graph.binary("LessOrEqual", keys, graph.unsqueeze(queries, 1))
            real = graph.unsqueeze(graph.unsqueeze(graph.cast(self._mask, np.bool_), 1), 1)
            self._visible = graph.binary("And", real, causal)
        return self._visible

    def _of_call(self, x: Value) -> Value:
        """The columns (batch, total) of this call's tokens, which are the last."""
        graph = self._graph
        start = graph.node("Neg", self._count, shape=(1,))
        end = graph.indices(np.iinfo(np.int64).max)
        shape = ("batch", "tokens")
        return graph.node("Slice", x, start, end, graph.indices(1), shape=shape)


def present_name(past: str) -> str:
    """Name of the output that becomes the input `past` of the next call.

    Examples
    --------
    >>> present_name("past_key_values.3.key"), present_name("past.4.recurrent")
    ('present.3.key', 'present.4.recurrent')
    """
    return "present" + past[past.index(".") :]
