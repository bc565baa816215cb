"""This file holds what the MLX backend remembers between calls."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from nanochat.backends.arrays import ArrayState
from nanochat.ops import Slot, Storage
from nanochat.rows import PAGE, Group, num_pages
from nanochat.ternary import KV_BLOCK, KV_LARGEST

__all__ = ["MlxState"]

# 128 times the smallest normal number.
_SMALLEST = float(np.finfo(np.float32).tiny) * 128


class MlxState(ArrayState[mx.array]):
    """Keys and values of every attention slot, (G, pages * `PAGE`, K), and other slots' arrays, by row.

    Keys and values are in the slot's storage; int8 has scales (G, pages * `PAGE`, 1). int4 has two codes to a byte, of
    the first half of K the lower one, and scales (G, pages * `PAGE`, K / 32), bits of bfloat16, which NumPy lacks.
    """

    def __init__(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> None:
        super().__init__(slots, rows=rows, capacity=capacity, pages=pages)
        self.arrays = []
        for slot in slots:
            if slot.kind == "attention":
                places = (self.num_pages + 1) * PAGE
                parts = _stored(mx.zeros((slot.heads, 1, slot.key_dim)), slot.storage)
                kinds = [part for part in parts for _ in range(2)]
                self.arrays.append(
                    [mx.zeros((slot.heads, places, part.shape[2]), part.dtype) for part in kinds]
                )
            elif slot.kind == "conv":
                self.arrays.append([mx.zeros((rows + 1, slot.taps - 1, slot.features))])
            else:
                shape = (rows + 1, slot.heads, slot.key_dim, slot.value_dim)
                self.arrays.append([mx.zeros(shape)])

    def end(self) -> None:
        super().end()
        # What is remembered but not read in this step would otherwise pile up as a graph of pending writes.
        arrays = [array for slot in self.arrays for array in slot]
        mx.async_eval(arrays)  # type: ignore[no-untyped-call]

    def append_kv(self, slot: int, k: mx.array, v: mx.array) -> None:
        """Keep the keys and values of the step's tokens, (N, G, K)."""
        step = self.step
        assert step is not None
        storage = self.slots[slot].storage
        pairs = zip(*(_stored(x.swapaxes(0, 1), storage) for x in (k, v)), strict=True)
        news = [part for pair in pairs for part in pair]
        pages = self.table[step.token_rows, step.positions // PAGE]
        places = pages * PAGE + step.positions % PAGE
        first, count = int(places[0]), len(places)
        for array, new in zip(self.arrays[slot], news, strict=True):
            if (places == first + np.arange(count)).all():
                array[:, first : first + count] = new
            else:
                array[:, mx.array(places)] = new

    def kept(self, slot: int, group: Group) -> tuple[mx.array, mx.array]:
        """Keys and values of the pages of some rows, as float32, (M, G, positions, K)."""
        pages = self.table[group.rows, : num_pages(group.end)]
        first, count = int(pages[0, 0]), pages.shape[1]
        if len(pages) == 1 and (pages[0] == first + np.arange(count)).all():
            # They lie in order, as a rule, and need not be copied.
            places = slice(first * PAGE, (first + count) * PAGE)
            arrays = [array[None, :, places] for array in self.arrays[slot]]
        else:
            index = mx.array((pages[:, :, None] * PAGE + np.arange(PAGE)).reshape(len(pages), -1))
            arrays = [array[:, index].swapaxes(0, 1) for array in self.arrays[slot]]
        return _numbers(arrays[::2], self.slots[slot]), _numbers(arrays[1::2], self.slots[slot])

    def _of_rows(self) -> list[mx.array]:
        pairs = zip(self.slots, self.arrays, strict=True)
        # A convolution of one tap remembers nothing, and MLX divides by zero where it writes to no elements.
        kept = [arrays for slot, arrays in pairs if slot.kind != "attention" and slot.taps != 1]
        return [array for arrays in kept for array in arrays]

    def _clear_page(self, page: int) -> None:
        for array in self._of_pages():
            array[:, page * PAGE : (page + 1) * PAGE] = 0

    def _copy_page(self, source: int, target: int) -> None:
        for array in self._of_pages():
            self._set_pages(array, [target], self._pages_of(array, [source]))

    def _pages_of(self, array: mx.array, pages: Sequence[int]) -> mx.array:
        return array[:, _places(pages)]

    def _set_pages(self, array: mx.array, pages: Sequence[int], values: mx.array) -> None:
        array[:, _places(pages)] = values

    def _copied(self, array: mx.array) -> mx.array:
        # Arrays of MLX do not change: what is written to is another.
        return array

    def _numpy(self, array: mx.array) -> NDArray[Any]:
        return np.array(array)

    def _array(self, values: NDArray[Any]) -> mx.array:
        return mx.array(values)


def _places(pages: Sequence[int]) -> mx.array:
    return mx.array((np.array(pages)[:, None] * PAGE + np.arange(PAGE)).reshape(-1))


def _stored(x: mx.array, storage: Storage) -> list[mx.array]:
    """What is kept of vectors (..., K): numbers, or codes and scales."""
    if storage == "int8":
        codes, scales = _quantized(x)
        return [codes.astype(mx.int8), scales]
    if storage == "int4":
        codes, scales = _quantize_kv(x)
        low, high = _padded(codes.astype(mx.int8), 2).split(2, axis=-1)
        return [(low & 15) | (high << 4), scales.astype(mx.bfloat16).view(mx.uint16)]
    return [x.astype(mx.float16 if storage == "float16" else mx.float32)]


def _numbers(parts: Sequence[mx.array], slot: Slot) -> mx.array:
    """Undo `_stored`, in float32."""
    if slot.storage == "int8":
        return parts[0] * parts[1]
    if slot.storage == "int4":
        packed, scales = parts[0], parts[1].view(mx.bfloat16).astype(mx.float32)
        # Shifts to the right repeat the sign.
        codes = mx.concatenate([(packed << 4) >> 4, packed >> 4], axis=-1)[..., : slot.key_dim]
        return codes * mx.repeat(scales, KV_BLOCK, axis=-1)[..., : slot.key_dim]
    return parts[0].astype(mx.float32)


def _padded(x: mx.array, multiple: int) -> mx.array:
    """Zeros behind x, up to a multiple of columns."""
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % multiple)])


def _quantize_kv(x: mx.array) -> tuple[mx.array, mx.array]:
    """Codes (..., K), as floats, and scales (..., blocks); see `ternary.quantize_kv`."""
    blocks = _padded(x, KV_BLOCK).reshape(*x.shape[:-1], -1, KV_BLOCK)
    finite = mx.isfinite(blocks).all(axis=-1, keepdims=True)
    blocks = mx.where(finite, blocks, 0.0)
    largest = mx.abs(blocks).max(axis=-1, keepdims=True)
    largest = mx.where(largest < _SMALLEST, 0.0, largest)
    scales = (largest / float(KV_LARGEST)).astype(mx.bfloat16).astype(mx.float32)
    inverse = mx.where(scales > 0, 1.0 / scales, 0.0)
    scales = mx.where(finite, scales, mx.array(np.nan))
    return mx.round(blocks * inverse).flatten(-2)[..., : x.shape[-1]], scales.squeeze(-1)


def _quantized(x: mx.array) -> tuple[mx.array, mx.array]:
    """Codes, as floats, and scales; see `ternary.quantize_activations`."""
    finite = mx.isfinite(x).all(axis=-1, keepdims=True)
    # Codes of what is not finite have no meaning, and a scale of NaN.
    x = mx.where(finite, x, 0.0)
    largest = mx.abs(x).max(axis=-1, keepdims=True)
    largest = mx.where(largest < _SMALLEST, 0.0, largest)
    inverse = mx.where(largest > 0, 127.0 / largest, 0.0)
    return mx.round(x * inverse), mx.where(finite, largest / 127.0, mx.array(np.nan))
