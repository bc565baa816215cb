"""This file holds what the torch backend remembers between calls, and how it rounds keys and values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat.ops import Slot

__all__ = ["TorchState", "quantize_activations"]

_TYPES = {"float32": torch.float32, "float16": torch.float16, "int8": torch.int8}


class TorchState:
    """Lengths of the sequences (B,), and the tensors of every slot, each with B in front.

    Keys and values are (B, capacity, heads, features) in the slot's storage; int8 has scales (B, capacity, heads, 1).
    """

    def __init__(
        self, slots: Sequence[Slot], batch: int, capacity: int, device: torch.device
    ) -> None:
        self.slots = tuple(slots)
        self.capacity = capacity
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        # The longest length, known without asking the device.
        self.longest = 0
        self.tensors: list[list[Tensor]] = []
        for slot in slots:
            if slot.kind == "attention":
                shape: tuple[int, ...] = (batch, capacity, slot.heads, slot.key_dim)
                kind = _TYPES[slot.storage]
                tensors = [torch.zeros(shape, dtype=kind, device=device) for _ in range(2)]
                if slot.storage == "int8":
                    tensors += [torch.zeros((*shape[:3], 1), device=device) for _ in range(2)]
                self.tensors.append(tensors)
                continue
            if slot.kind == "conv":
                shape = (batch, slot.taps - 1, slot.features)
            else:
                shape = (batch, slot.heads, slot.key_dim, slot.value_dim)
            self.tensors.append([torch.zeros(shape, device=device)])

    @classmethod
    def stack(cls, states: Sequence["TorchState"]) -> "TorchState":
        """See `nanochat.ops.Ops.stack`."""
        whole = cls((), 0, states[0].capacity, states[0].lengths.device)
        whole.slots = states[0].slots
        whole.lengths = torch.cat([state.lengths for state in states])
        whole.longest = max(state.longest for state in states)
        whole.tensors = [
            [torch.cat(parts) for parts in zip(*slot, strict=True)]
            for slot in zip(*(state.tensors for state in states), strict=True)
        ]
        return whole

    def keep(self, slot: int, k: Tensor, v: Tensor) -> None:
        """Append keys and values (B, T, heads, features) after each sequence's length."""
        places = self.lengths[:, None] + torch.arange(k.shape[1], device=k.device)
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        tensors = self.tensors[slot]
        if self.slots[slot].storage != "int8":
            tensors[0][rows, places] = k.to(tensors[0].dtype)
            tensors[1][rows, places] = v.to(tensors[1].dtype)
            return
        for number, x in enumerate((k, v)):
            codes, scales = quantize_activations(x, x.shape[-1])
            # The codes of a vector that is not finite have no meaning.
            scales = torch.where(scales.isfinite(), scales, torch.nan)
            tensors[number][rows, places] = codes.squeeze(-2).nan_to_num().to(torch.int8)
            tensors[2 + number][rows, places] = scales

    def kept(self, slot: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first positions, as float32."""
        tensors = [tensor[:, :end] for tensor in self.tensors[slot]]
        if self.slots[slot].storage != "int8":
            return tensors[0].float(), tensors[1].float()
        return tensors[0] * tensors[2], tensors[1] * tensors[3]


def quantize_activations(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes (..., blocks, block), as floats, and scales (..., blocks); see `ternary.quantize_activations`."""
    blocks = x.unflatten(-1, (-1, block))
    largest = blocks.abs().amax(dim=-1)
    largest = torch.where(largest < torch.finfo(torch.float32).tiny * 128, 0.0, largest)
    # A number divided by a tensor is a product with its reciprocal, in torch: another rounding.
    inverse = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0.0)
    return (blocks * inverse[..., None]).round().clamp(-127, 127), largest / 127
