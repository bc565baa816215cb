"""This file holds what the torch backend remembers between calls."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.backends.arrays import ArrayState
from nanochat.backends.torch.linears import quantize_activations
from nanochat.ops import Slot
from nanochat.rows import PAGE, Group, Step, num_pages

__all__ = ["TorchState"]

_TYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


class TorchState(ArrayState[Tensor]):
    """Keys and values of every attention slot, (pages, `PAGE`, G, K), and other slots' tensors, by row.

    Keys and values are in the slot's storage; int8 has scales (pages, `PAGE`, G, 1).
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
                kind = _TYPES[slot.storage]
                tensors = [torch.zeros(shape, dtype=kind, device=device) for _ in range(2)]
                if slot.storage == "int8":
                    tensors += [torch.zeros((*shape[:3], 1), device=device) for _ in range(2)]
                self.arrays.append(tensors)
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
        if self.slots[slot].storage != "int8":
            tensors[0][places] = k.to(tensors[0].dtype)
            tensors[1][places] = v.to(tensors[1].dtype)
            return
        for number, x in enumerate((k, v)):
            codes, scales = quantize_activations(x, x.shape[-1])
            # The codes of a vector that is not finite have no meaning.
            scales = torch.where(scales.isfinite(), scales, torch.nan)
            tensors[number][places] = codes.squeeze(-2).nan_to_num().to(torch.int8)
            tensors[2 + number][places] = scales

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
        if self.slots[slot].storage != "int8":
            return tensors[0].float(), tensors[1].float()
        return tensors[0] * tensors[2], tensors[1] * tensors[3]

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
