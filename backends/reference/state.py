"""This file holds what the reference remembers between calls, as plain as it can be."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.arrays import ArrayState
from nanochat.ops import Slot, Storage
from nanochat.rows import PAGE, num_pages

__all__ = ["ReferenceState"]

Array = NDArray[np.float32]


class ReferenceState(ArrayState[Array]):
    """Keys and values of every attention slot, each (pages, `PAGE`, G, K), and other slots' arrays, by row.

    Keys and values are float32, rounded to what the slot's storage can hold.
    """

    def __init__(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> None:
        super().__init__(slots, rows=rows, capacity=capacity, pages=pages)
        self.arrays = []
        for slot in slots:
            shape: tuple[int, ...]
            if slot.kind == "attention":
                shape = (self.num_pages + 1, PAGE, slot.heads, slot.key_dim)
                self.arrays.append([np.zeros(shape, np.float32), np.zeros(shape, np.float32)])
            elif slot.kind == "conv":
                self.arrays.append([np.zeros((rows + 1, slot.taps - 1, slot.features), np.float32)])
            else:
                shape = (rows + 1, slot.heads, slot.key_dim, slot.value_dim)
                self.arrays.append([np.zeros(shape, np.float32)])

    def append_kv(self, slot: int, k: Array, v: Array) -> None:
        """Keep the keys and values of the step's tokens, (N, G, K)."""
        assert self.step is not None
        pages = self.table[self.step.token_rows, self.step.positions // PAGE]
        for array, x in zip(self.arrays[slot], (k, v), strict=True):
            array[pages, self.step.positions % PAGE] = _kept(x, self.slots[slot].storage)

    def kept(self, slot: int, row: int, end: int) -> tuple[Array, Array]:
        """Keys and values of a row's first positions, (end, G, K)."""
        pages = self.table[row, : num_pages(end)]
        keys, values = (
            array[pages].reshape(-1, *array.shape[2:])[:end] for array in self.arrays[slot]
        )
        return keys, values

    def _copied(self, array: Array) -> Array:
        return array.copy()

    def _numpy(self, array: Array) -> Array:
        return array

    def _array(self, values: Array) -> Array:
        return values


def _kept(x: Array, storage: Storage) -> Array:
    """What vectors along the last axis are after they have been stored."""
    if storage == "float32":
        return x
    if storage == "float16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    rows = x.reshape(-1, x.shape[-1])
    if storage == "int4":
        codes, scales = ternary.quantize_kv(rows)
        of_numbers = np.repeat(scales, ternary.KV_BLOCK, axis=1)[:, : x.shape[-1]]
        return (codes * of_numbers).reshape(x.shape)
    with np.errstate(invalid="ignore"):
        codes, scales = ternary.quantize_activations(rows, block=x.shape[-1])
    scales = np.where(np.isfinite(scales), scales, np.float32(np.nan))
    return (codes * scales).reshape(x.shape)
