"""This file holds what the MLX backend remembers between calls, and how it rounds keys and values.

Legend: see `nanochat.ops`.
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from nanochat.ops import Slot

__all__ = ["MlxState"]

_TYPES = {"float32": mx.float32, "float16": mx.float16, "int8": mx.int8}


class MlxState:
    """Lengths of the sequences (B,), on the host, and the arrays of every slot, each with B in front.

    Keys and values are (B, heads, capacity, features) in the slot's storage; int8 has scales (B, heads, capacity, 1).
    """

    def __init__(self, slots: Sequence[Slot], batch: int, capacity: int) -> None:
        self.slots = tuple(slots)
        self.capacity = capacity
        self.lengths = np.zeros(batch, np.int64)
        self.arrays: list[list[mx.array]] = []
        for slot in slots:
            if slot.kind == "attention":
                shape: tuple[int, ...] = (batch, slot.heads, capacity, slot.key_dim)
                arrays = [mx.zeros(shape, _TYPES[slot.storage]) for _ in range(2)]
                if slot.storage == "int8":
                    arrays += [mx.zeros((*shape[:3], 1)) for _ in range(2)]
                self.arrays.append(arrays)
            elif slot.kind == "conv":
                self.arrays.append([mx.zeros((batch, slot.taps - 1, slot.features))])
            else:
                shape = (batch, slot.heads, slot.key_dim, slot.value_dim)
                self.arrays.append([mx.zeros(shape)])

    @classmethod
    def stack(cls, states: Sequence["MlxState"]) -> "MlxState":
        """See `nanochat.ops.Ops.stack`."""
        whole = cls((), 0, states[0].capacity)
        whole.slots = states[0].slots
        whole.lengths = np.concatenate([state.lengths for state in states])
        whole.arrays = [
            [mx.concatenate(list(parts)) for parts in zip(*slot, strict=True)]
            for slot in zip(*(state.arrays for state in states), strict=True)
        ]
        return whole

    def is_even(self) -> bool:
        """Whether all sequences are equally long."""
        return bool((self.lengths == self.lengths[0]).all())

    def keep(self, slot: int, k: mx.array, v: mx.array) -> None:
        """Append keys and values (B, T, G, K) after each sequence's length."""
        news = [k.swapaxes(1, 2), v.swapaxes(1, 2)]
        if self.slots[slot].storage == "int8":
            (k_codes, k_scales), (v_codes, v_scales) = (_quantized(x) for x in news)
            news = [k_codes, v_codes, k_scales, v_scales]
        length = k.shape[1]
        rows = mx.arange(k.shape[0])[:, None]
        positions = mx.array(self.lengths[:, None] + np.arange(length))
        for array, values in zip(self.arrays[slot], news, strict=True):
            new = values.astype(array.dtype)
            if self.is_even():
                start = int(self.lengths[0])
                array[:, :, start : start + length] = new
            else:
                array[rows, :, positions] = new.swapaxes(1, 2)

    def kept(self, slot: int, end: int) -> tuple[mx.array, mx.array]:
        """Keys and values of the first positions, as float32."""
        arrays = [array[:, :, :end] for array in self.arrays[slot]]
        if self.slots[slot].storage == "int8":
            return arrays[0] * arrays[2], arrays[1] * arrays[3]
        return arrays[0].astype(mx.float32), arrays[1].astype(mx.float32)


def _quantized(x: mx.array) -> tuple[mx.array, mx.array]:
    """Codes, as floats, and scales; see `ternary.quantize_activations`."""
    finite = mx.isfinite(x).all(axis=-1, keepdims=True)
    # Codes of what is not finite have no meaning, and a scale of NaN.
    x = mx.where(finite, x, 0.0)
    largest = mx.abs(x).max(axis=-1, keepdims=True)
    largest = mx.where(largest < float(np.finfo(np.float32).tiny) * 128, 0.0, largest)
    inverse = mx.where(largest > 0, 127.0 / largest, 0.0)
    return mx.round(x * inverse), mx.where(finite, largest / 127.0, mx.array(np.nan))
