"""This file holds what the Numba backend remembers between calls, in the layouts of its kernels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.arrays import ArrayState
from nanochat.backends.numba.attention.lane_product import PACKED_LANES
from nanochat.backends.numba.pending import Array, Values
from nanochat.backends.numba.runtime.isa import has_half
from nanochat.backends.numba.runtime.launch import Notes, Pool
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.backends.numba.steps import NumbaStep, RepeatedStep, bucket
from nanochat.errors import BackendError
from nanochat.ops import Slot, Storage
from nanochat.rows import (
    PAGE,
    Step,
    num_pages,
    step_of_segments,
    step_of_sequences,
)
from nanochat.ternary import KV_BLOCK

__all__ = ["NumbaState", "Repeated", "Spans", "buffers", "kept", "spans_of"]

# float16 is kept as its bits, and int4 two to a byte.
_NUMBERS: dict[Storage, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.uint16,
    "int8": np.int8,
    "int4": np.uint8,
}
# Bytes of a cache line.
_LINE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """Which tokens are whose: a step, the table (rows, pages of a row) of the pages, and how many spans are read.

    The arrays of a step that is repeated may be longer than what is read.
    """

    step: NumbaStep
    table: NDArray[np.int64]
    number: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Repeated:
    """A step that can be repeated: its notes, the arrays of its tokens and of its result.

    `num_replaced` is how many leaves of the weights had been replaced when it was noted.
    """

    notes: Notes
    ids: NDArray[np.int64]
    result: Any
    num_replaced: int


class NumbaState(ArrayState[Values]):
    """The buffers of every slot, with pages or rows in front, and the steps that are repeated.

    A step of few tokens has the arrays of a bucket, see `nanochat.backends.numba.steps`.
    """

    def __init__(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> None:
        super().__init__(slots, rows=rows, capacity=capacity, pages=pages)
        self.arrays = [buffers(slot, pages=self.num_pages + 1, rows=rows + 1) for slot in slots]
        # By kind and bucket.
        self.repeated: dict[tuple[str, int], Repeated] = {}
        # What the noted steps write to, which is used again by the next one.
        self.pool = Pool(most=1 << 62)
        self._buckets: dict[int, RepeatedStep] = {}
        # The positions of the step's longest row, before it.
        self.longest = 0

    def _arranged(
        self, rows: Sequence[int], starts: Sequence[int], counts: Sequence[int]
    ) -> NumbaStep:
        self.longest = max(starts)
        size = bucket(len(rows), sum(counts))
        if not size:
            return _for_kernels(super()._arranged(rows, starts, counts))
        if size not in self._buckets:
            self._buckets[size] = RepeatedStep.of(size, nobody=self.num_rows)
        self._buckets[size].become(rows, starts, counts)
        return self._buckets[size]

    def _copied(self, array: Values) -> Values:
        return array.copy()

    def _numpy(self, array: Values) -> Values:
        return array

    def _array(self, values: Values) -> Values:
        return values


def _for_kernels(step: Step) -> NumbaStep:
    """The same step, for kernels."""
    return NumbaStep(**vars(step))


def spans_of(x: Array, state: NumbaState | None, segments: Array | None = None) -> Spans:
    """The spans that tokens of x (B, T, ...) are of: of the state's step, of packed documents, or of sequences."""
    batch, length = x.shape[:2]
    if segments is not None:
        assert state is None, "what is packed has no state"
        return _documents(cast(NDArray[np.int64], segments))
    if state is None:
        return _sequences(batch, length)
    step = state.step
    assert isinstance(step, NumbaStep), "call `begin` of the state first"
    return Spans(step=step, table=state.table, number=min(length, len(step.rows)))


@lru_cache(maxsize=64)
def _sequences(batch: int, length: int) -> Spans:
    pages = num_pages(length)
    table = np.arange(batch * pages, dtype=np.int64).reshape(batch, pages)
    return Spans(step=_for_kernels(step_of_sequences(batch, length)), table=table, number=batch)


def _documents(segments: NDArray[np.int64]) -> Spans:
    step = _for_kernels(step_of_segments(segments))
    pages = [num_pages(count) for count in step.counts.tolist()]
    firsts = np.cumsum(pages) - pages
    # What a document has no page for is not looked at.
    table = firsts[:, None] + np.minimum(np.arange(max(pages)), np.array(pages)[:, None] - 1)
    return Spans(step=step, table=table, number=len(pages))


def kept(
    state: NumbaState | None, slot: int, otherwise: Slot, spans: Spans
) -> tuple[Slot, list[Values]]:
    """A slot of the state and its buffers; without a state, `otherwise` and empty ones."""
    if state is not None:
        return state.slots[slot], state.arrays[slot]
    pages = int(spans.table.max()) + 1 if otherwise.kind == "attention" else 0
    return otherwise, buffers(otherwise, pages=pages, rows=spans.number)


def buffers(slot: Slot, *, pages: int, rows: int) -> list[Values]:
    """Empty buffers of one slot, as the kernels in `attention` describe them."""
    if slot.kind == "conv":
        return [np.zeros((rows, slot.taps - 1, slot.features), np.float32)]
    if slot.kind == "delta":
        features, groups = -(-slot.key_dim // 4) * 4, -(-slot.value_dim // LANES)
        return [np.zeros((rows, slot.heads, groups, features, LANES), np.float32)]
    if slot.storage == "float16" and not has_half():
        raise BackendError(
            "this processor, or NUMBA_CPU_FEATURES, lacks the instructions that convert float16 (F16C): choose "
            "kv_cache='int8', 'int4' or 'float32'"
        )
    number = _NUMBERS[slot.storage]
    groups = -(-slot.key_dim // LANES)
    lanes, scales, scale = LANES, int(slot.storage == "int8"), cast(type[np.generic], np.float32)
    if slot.storage == "int4":
        lanes, scales, scale = PACKED_LANES, -(-slot.key_dim // KV_BLOCK), np.uint16
    return [
        _zeros((pages, slot.heads, PAGE // LANES, slot.key_dim, lanes), number),
        _zeros((pages, slot.heads, groups, PAGE, lanes), number),
        _zeros((pages, slot.heads, scales, PAGE), scale),
        _zeros((pages, slot.heads, scales, PAGE), scale),
    ]


def _zeros(shape: tuple[int, ...], number: type[np.generic]) -> Values:
    """Zeros that begin on a cache line, or every load of a vector would meet two of them."""
    size = math.prod(shape) * np.dtype(number).itemsize
    # Memory is taken from the system when a position is first written.
    memory = np.zeros(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return cast(Values, memory[start : start + size].view(number).reshape(shape))
