"""This file holds the state of an ONNX graph: what a call is given of the calls before it, and gives to the next.

Each remembered array is a pair, an input ``past…`` and an output ``present…``, named as onnxruntime-genai names them.
A layer's number counts the layers as they run, so a looped layer has one for every step. The three convolutions of a
Gated DeltaNet layer share one array.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from nanochat.export.onnx.graph import Dim, Graph, Value
from nanochat.ops import Slot
from nanochat.rotary import Rotation

__all__ = ["MISPLACED", "OnnxState", "memory_shapes", "present_name"]

_ATTENTION = ("past_key_values.{}.key", "past_key_values.{}.value")
_CONVOLUTION = "past.{}.conv"
_RECURRENT = "past.{}.recurrent"
# The convolutions of a layer: of queries, keys and values.
_NUM_CONVOLUTIONS = 3
# Name of the node that fails where padding stands elsewhere than on the right, which the error of a runtime shows.
MISPLACED = "padding_must_stand_on_the_right_of_each_call"


class OnnxState(ABC):
    """The remembered arrays of every slot of sequences of at most `capacity` tokens, and which tokens are real.

    A value that is a property is made where it is first asked for.
    """

    def __init__(
        self, graph: Graph, slots: Sequence[Slot], tokens: Value, *, capacity: int
    ) -> None:
        self.graph = graph
        self.capacity = capacity
        self.mask = graph.input("attention_mask", ("batch", "total"), dtype=np.int64)
        self.count = graph.node("Shape", tokens, shape=(1,), start=1, end=2)
        self._pasts: list[tuple[Value, ...]] = []
        self._presents: list[tuple[str, Value]] = []
        self._inputs: list[Value] = []
        self._places_of_last_inputs: Value | None = None
        self._rotations: dict[Rotation, tuple[Value, Value]] = {}
        given = [graph.input(*item, dtype=np.float32) for item in memory_shapes(slots).items()]
        inputs = iter(given)
        for number, slot in enumerate(slots):
            if slot.kind == "attention":
                self._pasts.append((next(inputs), next(inputs)))
            elif slot.kind == "delta":
                self._pasts.append((next(inputs),))
            elif len(self._pasts) == number:
                self._add_convolutions(next(inputs), slots[number : number + _NUM_CONVOLUTIONS])

    def past(self, slot: int) -> tuple[Value, ...]:
        """The arrays that the slot held before this call."""
        return self._pasts[slot]

    def keep(self, slot: int, *presents: Value) -> None:
        """Keep what the slot holds after this call."""
        for past, present in zip(self._pasts[slot], presents, strict=True):
            self._presents.append((present_name(past.name), present))

    def keep_inputs(self, slot: int, x: Value) -> None:
        """Keep the last inputs of a convolution, of those before this call and of x, (batch, features, tokens)."""
        self._inputs.append(x)
        if len(self._inputs) < _NUM_CONVOLUTIONS:
            return
        graph = self.graph
        pieces, self._inputs = self._inputs, []
        split = graph.producer(self._pasts[slot][0])
        assert split is not None
        past = split.inputs[0]
        assert past is not None
        features, length = past.size(1), past.size(2)
        new = graph.concat(*pieces, axis=1, length=features)
        both = graph.concat(past, new, axis=2, length="extended")
        if self._places_of_last_inputs is None:
            # Real tokens stand on the left, so the last `length` of a sequence end where its padding begins.
            steps = graph.literal(np.arange(length))
            places = graph.node("Add", self.counts, steps, shape=("batch", length))
            self._places_of_last_inputs = graph.node(
                "Expand",
                graph.unsqueeze(places, 1),
                graph.indices(1, features, 1),
                shape=("batch", features, length),
            )
        present = graph.node(
            "GatherElements", both, self._places_of_last_inputs, shape=past.shape, axis=2
        )
        self._presents.append((present_name(past.name), present))

    def declare_outputs(self) -> None:
        """Give all that is kept to the caller."""
        for name, value in self._presents:
            self.graph.output(value, name)

    @abstractmethod
    def angle_positions(self) -> Value:
        """The places, float32, whose angles `tables` gives."""

    def tables(self, rotation: Rotation) -> tuple[Value, Value]:
        """Cosine and sine of the angles, (..., pairs), times the magnitude; see `Rotation.tables`."""
        if rotation not in self._rotations:
            graph = self.graph
            places = self.angle_positions()
            frequencies = graph.literal(np.array(rotation.frequencies, np.float32))
            angles = graph.binary("Mul", graph.unsqueeze(places, -1), frequencies)
            cos, sin = graph.unary("Cos", angles), graph.unary("Sin", angles)
            if rotation.magnitude != 1:
                magnitude = graph.literal(np.array(rotation.magnitude, np.float32))
                cos, sin = (graph.binary("Mul", table, magnitude) for table in (cos, sin))
            self._rotations[rotation] = cos, sin
        return self._rotations[rotation]

    @cached_property
    def of_call(self) -> Value:
        """The columns of ``attention_mask`` that are this call's, which are the last, (batch, tokens)."""
        graph = self.graph
        start = graph.node("Neg", self.count, shape=(1,))
        bounds = start, graph.indices(np.iinfo(np.int64).max), graph.indices(1)
        return graph.node("Slice", self.mask, *bounds, shape=("batch", "tokens"))

    @cached_property
    def counts(self) -> Value:
        """Real tokens of each sequence in this call, int64, (batch, 1)."""
        return self.graph.reduce("ReduceSum", self.of_call, 1)

    @cached_property
    def earlier(self) -> Value:
        """Tokens of each sequence before this call, int64, (batch, 1)."""
        return self.graph.binary("Sub", self.graph.reduce("ReduceSum", self.mask, 1), self.counts)

    @cached_property
    def total(self) -> Value:
        """Tokens of the longest sequence, an int64 number."""
        total = self.graph.node("Shape", self.mask, shape=(1,), start=1, end=2)
        return self.graph.node("Squeeze", total, shape=())

    @cached_property
    def guard(self) -> Value:
        """The int64 number 0, whose computation fails if a token of this call stands behind padding."""
        graph = self.graph
        last = graph.node("ArgMax", self.of_call, shape=("batch", 1), axis=1, select_last_index=1)
        # 1 for each sequence whose last token is as far to the right as its number of tokens says; else less.
        distances = graph.binary("Sub", self.counts, last)
        least = graph.node("ReduceMin", distances, shape=(), keepdims=0)
        index = graph.binary("Sub", graph.literal(np.array(1)), least)
        zeros = graph.literal(np.zeros(1, np.int64))
        return graph.node("Gather", zeros, index, shape=(), name=MISPLACED)

    @cached_property
    def valid(self) -> Value:
        """1 for a token of this call and 0 for padding, float32, (batch, tokens, 1)."""
        mask = self.graph.binary("Add", self.of_call, self.guard)
        return self.graph.unsqueeze(self.graph.cast(mask, np.float32), -1)

    def _add_convolutions(self, past: Value, slots: Sequence[Slot]) -> None:
        sizes = [slot.features for slot in slots]
        pieces = self.graph.nodes(
            "Split",
            past,
            self.graph.indices(*sizes),
            shapes=[("batch", size, past.size(2)) for size in sizes],
            axis=1,
        )
        self._pasts += [(piece,) for piece in pieces]


def memory_shapes(slots: Sequence[Slot]) -> dict[str, tuple[Dim, ...]]:
    """Shape of every remembered array, by the name of the input that it is given as."""
    shapes: dict[str, tuple[Dim, ...]] = {}
    layer = 0
    for number, slot in enumerate(slots):
        if slot.kind == "attention":
            for name in _ATTENTION:
                shapes[name.format(layer)] = "batch", slot.heads, "past", slot.key_dim
        elif slot.kind == "delta":
            shapes[_RECURRENT.format(layer)] = "batch", slot.heads, slot.key_dim, slot.value_dim
        else:
            features = sum(s.features for s in slots[number : number + _NUM_CONVOLUTIONS])
            # The first of the three has the sum.
            shapes.setdefault(_CONVOLUTION.format(layer), ("batch", features, slot.taps - 1))
        layer += slot.kind != "conv"
    return shapes


def present_name(past: str) -> str:
    """Name of the output that becomes the input `past` of the next call.

    Examples
    --------
    >>> present_name("past_key_values.3.key"), present_name("past.4.recurrent")
    ('present.3.key', 'present.4.recurrent')
    """
    return "present" + past[past.index(".") :]
