"""This file holds what the Numba backend remembers between calls, in the layouts of its kernels."""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from nanochat.backends.numba.pending import Values
from nanochat.backends.numba.runtime.isa import has_half
from nanochat.backends.numba.runtime.launch import Notes
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.errors import BackendError
from nanochat.ops import Slot, Storage

__all__ = ["NumbaState", "buffers"]

# float16 is kept as its bits.
_NUMBERS: dict[Storage, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.uint16,
    "int8": np.int8,
}
# Bytes of a cache line.
_LINE = 64


class NumbaState:
    """Lengths of the sequences (B,), and the buffers of every slot, with B in front."""

    def __init__(self, slots: Sequence[Slot], batch: int, capacity: int) -> None:
        self.slots = tuple(slots)
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int64)
        self.longest = 0
        self.arrays = [buffers(slot, batch, capacity) for slot in slots]
        # The step that is repeated, its token ids, and its result.
        self.step: tuple[Notes, Values, Values] | None = None

    @classmethod
    def stack(cls, states: Sequence["NumbaState"]) -> "NumbaState":
        """See `nanochat.ops.Ops.stack`."""
        lengths = np.concatenate([state.lengths for state in states])
        whole = cls(states[0].slots, len(lengths), states[0].capacity)
        whole.lengths = lengths
        whole.longest = max(state.longest for state in states)
        parts = zip(*(state.arrays for state in states), strict=True)
        for slot, target, sources in zip(whole.slots, whole.arrays, parts, strict=True):
            used = (_used(slot, arrays, whole.longest) for arrays in (target, *sources))
            for buffer, *rows in zip(*used, strict=True):
                np.concatenate(rows, out=buffer)
        return whole


def buffers(slot: Slot, batch: int, capacity: int) -> list[Values]:
    """Empty buffers of one slot, as the kernels in `attention` and `delta` describe them."""
    if slot.kind == "conv":
        return [np.zeros((batch, slot.taps - 1, slot.features), np.float32)]
    if slot.kind == "delta":
        features, groups = -(-slot.key_dim // 4) * 4, -(-slot.value_dim // LANES)
        return [np.zeros((batch, slot.heads, groups, features, LANES), np.float32)]
    if slot.storage == "float16" and not has_half():
        raise BackendError(
            "this processor, or NUMBA_CPU_FEATURES, lacks the instructions that convert float16 (F16C): choose "
            "kv_cache='int8' or 'float32'"
        )
    number = _NUMBERS[slot.storage]
    tiles, groups = -(-capacity // LANES), -(-slot.key_dim // LANES)
    scaled = slot.storage == "int8"
    return [
        _zeros((batch, slot.heads, tiles, slot.key_dim, LANES), number),
        _zeros((batch, slot.heads, groups, capacity, LANES), number),
        _zeros((batch, slot.heads, tiles * LANES if scaled else 0), np.float32),
        _zeros((batch, slot.heads, capacity if scaled else 0), np.float32),
    ]


def _used(slot: Slot, arrays: list[Values], length: int) -> list[Values]:
    """The parts that sequences of that length have written, or all where length does not matter."""
    if slot.kind != "attention":
        return arrays
    keys, values, key_scales, value_scales = arrays
    tiles = -(-length // LANES)
    return [
        keys[:, :, :tiles],
        values[:, :, :, :length],
        key_scales[:, :, :length],
        value_scales[:, :, :length],
    ]


def _zeros(shape: tuple[int, ...], number: type[np.generic]) -> Values:
    """Zeros that begin on a cache line, or every load of a vector would meet two of them."""
    size = math.prod(shape) * np.dtype(number).itemsize
    # Memory is taken from the system when a position is first written.
    memory = np.zeros(size + _LINE, np.uint8)
    start = -memory.ctypes.data % _LINE
    return cast(Values, memory[start : start + size].view(number).reshape(shape))
