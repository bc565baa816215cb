"""This file holds the linears of the torch backend: how weights are kept, rounded and multiplied."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nanochat import ternary
from nanochat.blocks.plain import plain
from nanochat.weights import Dense, Int8, Latent, Stored

__all__ = [
    "FloatLinear",
    "Leaf",
    "PackedLinear",
    "RoundedKind",
    "TableLinear",
    "copied",
    "prepare_leaf",
    "products",
    "quantize_activations",
    "rounded_activations",
    "rounded_values",
    "rounded_weights",
    "rows_of",
]

# What latent weights are rounded to.
RoundedKind = Literal["ternary", "int8", "float16", "bfloat16"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatLinear:
    """Weights in training (R, C): what latent ones stand for, in floats, so that gradients can be taken of them.

    Inputs are rounded in blocks of `activation_block` columns, or not at all if it is 0, as in an unquantised model.
    """

    values: Tensor
    activation_block: int


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedLinear:
    """A ternary matrix as stored: packed codes (R, ceil(C / 4)) and scales (R, blocks), float32."""

    packed: Tensor
    scales: Tensor
    columns: int
    activation_block: int


@dataclass(frozen=True, kw_only=True, eq=False)
class TableLinear:
    """An 8-bit table: codes (R, C) and scales (R, blocks), float32."""

    codes: Tensor
    scales: Tensor
    activation_block: int


# Dense numbers may have 16 bits.
Leaf = FloatLinear | PackedLinear | TableLinear | Tensor


def prepare_leaf(name: str, leaf: Stored, device: torch.device) -> Leaf:
    """The leaf on the device: ternary codes stay packed, latent weights are rounded and stay floats."""
    leaf = plain(leaf)
    if isinstance(leaf, Dense):
        return _dense(name, leaf, device)
    if isinstance(leaf, Latent):
        values = rounded_values(copied(leaf.values, device), leaf.kind, leaf.weight_block)
        return FloatLinear(values=values, activation_block=leaf.activation_block)
    if isinstance(leaf, Int8):
        return TableLinear(
            codes=copied(leaf.codes, device),
            scales=copied(leaf.scales.astype(np.float32), device),
            activation_block=leaf.activation_block,
        )
    ternary.require_legal(leaf.packed, name)
    return PackedLinear(
        packed=copied(leaf.packed, device),
        scales=copied(leaf.scales.astype(np.float32), device),
        columns=leaf.columns,
        activation_block=leaf.activation_block,
    )


def _dense(name: str, leaf: Dense, device: torch.device) -> Tensor:
    # A projection is small, and read at every site.
    if leaf.values.dtype == np.float32 or name.endswith("projection"):
        return copied(leaf.values.astype(np.float32), device)
    dtype: torch.dtype = getattr(torch, leaf.values.dtype.name)
    return copied(leaf.values.view(np.int16), device).view(dtype)


def rows_of(table: Leaf, ids: Tensor) -> Tensor:
    """Rows of a table, (..., C), in float32."""
    if isinstance(table, FloatLinear):
        return functional.embedding(ids, table.values)
    if isinstance(table, Tensor):
        return functional.embedding(ids, table).float()
    if isinstance(table, PackedLinear):
        packed = table.packed[ids]
        codes = _unpack(packed.flatten(0, -2), table.columns).view(*ids.shape, table.columns)
    else:
        codes = table.codes[ids]
    scales = table.scales[ids]
    blocks: Tensor = codes.unflatten(-1, (scales.shape[-1], -1)) * scales[..., None]
    return blocks.flatten(-2)


def copied(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """A tensor that shares no memory: torch refuses read-only memory maps, and shares that of writable arrays."""
    return torch.tensor(np.array(values), device=device)


def products(x: Tensor, linears: Sequence[Leaf], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """See :meth:`nanochat.ops.Ops.project`; `dtype` is that of products with `FloatLinear`."""
    rounded: dict[int, Tensor] = {}
    codes: dict[int, tuple[Tensor, Tensor]] = {}

    def product(linear: Leaf) -> Tensor:
        if isinstance(linear, Tensor):
            return functional.linear(x, linear.to(x.dtype))
        block = linear.activation_block
        if isinstance(linear, FloatLinear):
            if block not in rounded:
                rounded[block] = rounded_activations(x, block)
            return _product(rounded[block], linear.values, dtype)
        if block not in codes:
            codes[block] = quantize_activations(x, block)
        return _integer_product(*codes[block], linear)

    return tuple(product(linear) for linear in linears)


def quantize_activations(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes (..., blocks, block), as floats, and scales (..., blocks); see `ternary.quantize_activations`."""
    blocks = x.unflatten(-1, (-1, block))
    largest = blocks.abs().amax(dim=-1)
    largest = torch.where(largest < torch.finfo(torch.float32).tiny * 128, 0.0, largest)
    # A number divided by a tensor is a product with its reciprocal, in torch: another rounding.
    inverse = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0.0)
    return (blocks * inverse[..., None]).round().clamp(-127, 127), largest / 127


def _product(x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return functional.linear(x.to(dtype), weight.to(dtype)).to(x.dtype)


def rounded_activations(x: Tensor, block: int) -> Tensor:
    """The input of a `FloatLinear`, with straight-through gradients."""
    if block == 0:
        return x
    codes, scales = quantize_activations(x.detach(), block)
    return _straight_through(x, (codes * scales[..., None]).flatten(-2))


def _straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """The rounded numbers, whose gradient is that of `values`."""
    return values + (rounded - values).detach()


def rounded_values(values: Tensor, kind: RoundedKind, weight_block: int) -> Tensor:
    """What latent weights (R, C) stand for, to the last bit as in the file; `weight_block` is for codes."""
    if kind == "float16":
        return values.half().float()
    if kind == "bfloat16":
        return values.bfloat16().float()
    floor = ternary.SMALLEST_SCALE
    blocks = values.unflatten(1, (-1, weight_block))
    if kind == "int8":
        scales = (blocks.abs().amax(dim=2, keepdim=True) / 127).clamp(min=floor).half().float()
        codes: Tensor = (blocks / scales).round_().clamp_(-127, 127).mul_(scales).flatten(1)
        return codes
    # As in `ternary.quantize`, to the last bit.
    mean = blocks.abs().mean(dim=2, keepdim=True, dtype=torch.float64).float()
    scales = mean.clamp(min=floor).half().float()
    rounded: Tensor = (blocks / scales).round_().clamp_(-1, 1).mul_(scales).flatten(1)
    return rounded


@torch.library.custom_op("nanochat::rounded_weights", mutates_args=())
def rounded_weights(values: Tensor, kind: str, weight_block: int) -> Tensor:
    """`rounded_values` with straight-through gradients, for a pass that may be compiled.

    A compiler must not look inside: it takes a conversion to float16 and back for none, and scales stay unrounded.
    """
    # An operator's arguments have simple types.
    return rounded_values(values, cast(RoundedKind, kind), weight_block)


@rounded_weights.register_fake
def _(values: Tensor, *_: object) -> Tensor:
    return torch.empty_like(values)


rounded_weights.register_autograd(lambda _, upstream: (upstream, None, None))


def _integer_product(codes: Tensor, scales: Tensor, linear: PackedLinear | TableLinear) -> Tensor:
    """Exact integer sums per activation block, as floats wide enough to hold them, then the scales."""
    if isinstance(linear, PackedLinear):
        weight, largest = _unpack(linear.packed, linear.columns), 1
    else:
        weight, largest = linear.codes, 127
    count, block = codes.shape[-2:]
    # float32 holds integers below 2**24 exactly.
    exact = torch.float32 if 127 * largest * block < 2**24 else torch.float64
    rows = codes.reshape(-1, count, block).transpose(0, 1).to(exact)
    blocks = weight.view(-1, count, block).permute(1, 2, 0).to(exact)
    sums = (rows @ blocks).float()
    share = count // linear.scales.shape[1]
    factors = linear.scales.repeat_interleave(share, dim=1)
    scaled = sums * scales.reshape(-1, count).T[:, :, None] * factors.T[:, None, :]
    return scaled.sum(dim=0).view(*codes.shape[:-2], -1)


def _unpack(packed: Tensor, columns: int) -> Tensor:
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
    pairs = (packed[:, :, None] >> shifts) & 3
    return pairs.flatten(1)[:, :columns].to(torch.int8) - 1
