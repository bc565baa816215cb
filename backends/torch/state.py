"""This file holds what the torch backend remembers between calls."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nanochat.backends.arrays import ArrayState
from nanochat.backends.torch.linears import quantize_activations
from nanochat.ops import Slot, Storage
from nanochat.rows import PAGE, Group, Step, num_pages
from nanochat.ternary import KV_BLOCK, KV_LARGEST

__all__ = ["TorchState"]


class TorchState(ArrayState[Tensor]):
    """Keys and values of every attention slot, (pages, `PAGE`, G, K), and other slots' tensors, by row.

    Keys and values are in the slot's storage; int8 has scales (pages, `PAGE`, G, 1). int4 has two codes to a byte, of
    the first half of K the lower one, and scales (pages, `PAGE`, G, K / 32), bits of bfloat16, which NumPy lacks.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        device: torch.device,
        *,
        rows: int,
        capacity: int,
        pages: int | None = None,
    ) -> None:
        super().__init__(slots, rows=rows, capacity=capacity, pages=pages)
        self.device = device
        self.arrays = []
        for slot in slots:
            if slot.kind == "attention":
                shape: tuple[int, ...] = (self.num_pages + 1, PAGE, slot.heads, slot.key_dim)
                parts = _stored(torch.zeros(shape[2:], device=device), slot.storage)
                kinds = [part for part in parts for _ in range(2)]
                self.arrays.append([part.new_zeros((*shape[:2], *part.shape)) for part in kinds])
                continue
            if slot.kind == "conv":
                shape = (rows + 1, slot.taps - 1, slot.features)
            else:
                shape = (rows + 1, slot.heads, slot.key_dim, slot.value_dim)
            self.arrays.append([torch.zeros(shape, device=device)])
        # What the device is told of a step, once for all layers.
        self._told: dict[object, Tensor] = {}

    def begin(self, rows: Sequence[int], counts: Sequence[int]) -> Step:
        self._told.clear()
        return super().begin(rows, counts)

    def tell(self, name: object, values: NDArray[np.int64]) -> Tensor:
        """Numbers of the step on the device, under a name of their own."""
        if name not in self._told:
            self._told[name] = torch.from_numpy(np.ascontiguousarray(values)).to(self.device)
        return self._told[name]

    def append_kv(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Keep the keys and values of the step's tokens, (N, G, K)."""
        step = self.step
        assert step is not None
        pages = self.table[step.token_rows, step.positions // PAGE]
        places = self.tell("places", pages * PAGE + step.positions % PAGE)
        tensors = [tensor.flatten(0, 1) for tensor in self.arrays[slot]]
        for number, x in enumerate((k, v)):
            parts = _stored(x, self.slots[slot].storage)
            for tensor, part in zip(tensors[number::2], parts, strict=True):
                tensor[places] = part

    def kept(self, slot: int, group: Group) -> tuple[Tensor, Tensor]:
        """Keys and values of the pages of some rows, as float32, (M, positions, G, K)."""
        pages = self.table[group.rows, : num_pages(group.end)]
        first, count = int(pages[0, 0]), pages.shape[1]
        if len(pages) == 1 and (pages[0] == first + np.arange(count)).all():
            # They lie in order, as a rule, and need not be copied.
            tensors = [tensor[first : first + count][None] for tensor in self.arrays[slot]]
        else:
            index = self.tell(("pages", group.count), pages)
            tensors = [tensor[index] for tensor in self.arrays[slot]]
        tensors = [tensor.flatten(1, 2) for tensor in tensors]
        return _numbers(tensors[::2], self.slots[slot]), _numbers(tensors[1::2], self.slots[slot])

    def _clear_page(self, page: int) -> None:
        for tensor in self._of_pages():
            tensor[page] = 0

    def _copied(self, array: Tensor) -> Tensor:
        return array.clone()

    def _numpy(self, array: Tensor) -> NDArray[Any]:
        values: NDArray[Any] = array.cpu().numpy()
        return values

    def _array(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self.device)


def _stored(x: Tensor, storage: Storage) -> list[Tensor]:
    """What is kept of vectors (..., K): numbers, or codes and scales."""
    if storage == "int8":
        codes, scales = quantize_activations(x, x.shape[-1])
        # The codes of a vector that is not finite have no meaning.
        scales = torch.where(scales.isfinite(), scales, torch.nan)
        return [codes.squeeze(-2).nan_to_num().to(torch.int8), scales]
    if storage == "int4":
        codes, scales = _quantize_kv(x)
        codes = functional.pad(codes, (0, x.shape[-1] % 2)).to(torch.int8)
        low, high = codes.chunk(2, dim=-1)
        return [low & 15 | high << 4, scales.to(torch.bfloat16).view(torch.int16)]
    return [x.half() if storage == "float16" else x.float()]


def _numbers(parts: Sequence[Tensor], slot: Slot) -> Tensor:
    """Undo `_stored`, in float32."""
    if slot.storage == "int8":
        return parts[0] * parts[1]
    if slot.storage == "int4":
        packed, scales = parts[0], parts[1].view(torch.bfloat16).float()
        # Shifts to the right repeat the sign.
        codes = torch.cat([packed << 4 >> 4, packed >> 4], dim=-1)[..., : slot.key_dim]
        return codes * scales.repeat_interleave(KV_BLOCK, dim=-1)[..., : slot.key_dim]
    return parts[0].float()


def _quantize_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (..., K), as floats, and scales (..., blocks); see `ternary.quantize_kv`."""
    blocks = functional.pad(x, (0, -x.shape[-1] % KV_BLOCK)).unflatten(-1, (-1, KV_BLOCK))
    largest = blocks.abs().amax(dim=-1)
    finite = largest.isfinite()
    largest = torch.where(largest < torch.finfo(torch.float32).tiny * 128, 0.0, largest)
    # Divided by a tensor: on CUDA, a number would be inverted and multiplied with, which is another rounding.
    scales = (largest / torch.full_like(largest, KV_LARGEST)).to(torch.bfloat16).float()
    inverse = torch.where(scales > 0, torch.ones_like(scales) / scales, 0.0)
    codes = (torch.where(finite[..., None], blocks, 0.0) * inverse[..., None]).round()
    return codes.flatten(-2)[..., : x.shape[-1]], torch.where(finite, scales, torch.nan)
