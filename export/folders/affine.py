"""This file holds ternary matrices in MLX's affine format of 2 bits: a number is ``scale * q + bias``.

Where the bias is minus the scale, q - 1 is the code, and the bytes are those of this package: a leaf is a view of the
file. Other groups are taken if the numbers that occur in them are zeros and one magnitude. What MLX itself rounds to 2
bits is none of this: between the least and the largest number of a group it has no zero in the middle.

Shapes are written with R rows, C columns and G groups of a row.

References
----------
.. [1] github.com/ml-explore/mlx, mlx/backend/cpu/quantized.cpp, version 0.32.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.errors import ConfigError, FormatError, NumericError, ShapeError
from nanochat.export.folders.packing import Packing
from nanochat.export.folders.tensors import FLOATS, FolderTensors
from nanochat.export.places import Index, row_slice
from nanochat.weights import Spec, Ternary, TernaryBlocks

__all__ = ["AffineMatrices"]

_GROUPS = (64, 128)
# Of a word, which has 16 numbers of 2 bits.
_WORD_COLUMNS = 16
_WORD_BITS = 32
# Columns that are looked at at once: what lies between two passes stays in the cache.
_AT_ONCE = 2**18


class AffineMatrices(Packing):
    """See the module."""

    companions = ("scales", "biases")
    is_mlx = True

    def __init__(self, tensors: FolderTensors, fields: Mapping[str, object]) -> None:
        super().__init__(tensors, fields)
        # Widths and groups of single modules, which it may say, tensors say, too.
        said = fields.get("quantization")
        mode = said.get("mode", "affine") if isinstance(said, dict) else None
        if not isinstance(said, dict) or mode != "affine":
            raise ConfigError(
                f'quantization is {said!r:.200}: must be an object for 2 bits whose "mode", if any, is "affine"; pass '
                "a folder of MLX in 2 bits, or of unpacked numbers"
            )

    def is_ternary(self, module: str, shape: tuple[int, int]) -> bool:
        del shape
        return f"{module}.scales" in self.tensors

    def blocks(self, modules: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        """The narrowest group that there is, of which wider ones are several."""
        block = min(self._group(module, shape) for module, shape in modules.items())
        return {"weight_block": block, "activation_block": block}

    def leaf(
        self, module: str, shape: tuple[int, int], spec: Spec, rows: Index | None
    ) -> Ternary | TernaryBlocks:
        group = self._group(module, shape)
        num_rows, columns = shape
        key = f"{module}.weight"
        words = self.tensors.take(key, (num_rows, columns // _WORD_COLUMNS), "U32")
        # A word's first number is in its lowest bits, and the words are little-endian.
        codes = words.view(np.uint8).reshape(num_rows, columns // group, group // 4)
        scales, biases = (
            self.tensors.take(f"{module}.{part}", codes.shape[:2], *FLOATS)
            for part in self.companions
        )
        halves = _negated(scales, biases)
        if halves is not None:
            return TernaryBlocks(
                codes=codes,
                scales=halves,
                packing="pairs",
                rows=np.arange(num_rows)[row_slice(rows)],
                blocks=np.arange(codes.shape[1]),
                columns=columns,
                weight_block=spec.weight_block,
                activation_block=spec.activation_block,
                name=f"{self.tensors.directory}: {key}",
            )
        packed = np.empty((num_rows, columns // 4), np.uint8)
        found = np.empty(codes.shape[:2], np.float16)
        at_once = max(1, _AT_ONCE // columns)
        for start in range(0, num_rows, at_once):
            part = slice(start, start + at_once)
            packed[part], found[part] = _ternary_part(
                key, codes[part], scales[part], biases[part], first=start
            )
        part_of = row_slice(rows)
        return Ternary(
            packed=packed[part_of],
            scales=np.repeat(found[part_of], group // spec.weight_block, axis=1),
            columns=columns,
            activation_block=spec.activation_block,
        )

    def _group(self, module: str, shape: tuple[int, int]) -> int:
        """Columns that share a scale, told by the shapes."""
        columns = shape[1]
        key = f"{module}.weight"
        if not self.is_ternary(module, shape):
            raise FormatError(
                f"{self.tensors.directory}: {module}.scales is missing, so that {key} is not of 2 bits: here every "
                "linear is ternary; pass a model of which all linears are"
            )
        found, scales = (self.tensors.described(name).shape for name in (key, f"{module}.scales"))
        bits = _WORD_BITS * found[-1] // columns if found else 0
        if len(found) != 2 or bits != _WORD_BITS // _WORD_COLUMNS:
            raise ShapeError(
                f"{key} has shape {list(found)}, which is of {bits} bits for {columns} columns: must be of 2, which "
                "ternary matrices have; pass a folder of MLX in 2 bits, or of unpacked numbers"
            )
        group = columns // scales[-1] if scales and scales[-1] else 0
        if group not in _GROUPS or len(scales) != 2 or group * scales[-1] != columns:
            raise ShapeError(
                f"{module}.scales has shape {list(scales)}, groups of {group} columns: this package reads groups of 64 "
                "and 128; pass a folder with one of these"
            )
        return group


def _negated(
    scales: NDArray[np.generic], biases: NDArray[np.generic]
) -> NDArray[np.float16] | None:
    """The scales in float16, a view if they are, if each bias is minus its scale; None if one is not."""
    numbers = scales.astype(np.float32)
    if not ((biases.astype(np.float32) == -numbers) & (numbers >= 0)).all():
        return None
    halves = scales.astype(np.float16, copy=False)
    return halves if np.array_equal(halves.astype(np.float32), numbers) else None


def _ternary_part(
    name: str,
    codes: NDArray[np.uint8],
    scales: NDArray[np.generic],
    biases: NDArray[np.generic],
    *,
    first: int,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Packed codes, (R, C / 4), and scales, (R, G), of some rows, the first of which has that number."""
    rows, groups, size = codes.shape
    digits = (codes[..., None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)).reshape(
        rows, groups, 4 * size
    )
    # Exact: 11 bits times 2, and a sum of such, are held by float64.
    factors, offsets = scales.astype(np.float64), biases.astype(np.float64)
    ternary.require_finite(factors, f"{name.removesuffix('.weight')}.scales")
    ternary.require_finite(offsets, f"{name.removesuffix('.weight')}.biases")
    values = factors[..., None] * np.arange(4) + offsets[..., None]
    used = np.stack([(digits == q).any(axis=2) for q in range(4)], axis=2)
    sizes = np.where(used, np.abs(values), 0)
    largest = sizes.max(axis=2)
    wrong = ((sizes != 0) & (sizes != largest[..., None])).any(axis=2)
    if wrong.any():
        row, group = (int(i) for i in np.argwhere(wrong)[0])
        numbers = ", ".join(_numbers(values[row, group], used[row, group]))
        raise NumericError(
            f"{name} holds {numbers} in row {row + first}, columns {group * 4 * size} to {(group + 1) * 4 * size - 1}: "
            "a ternary block has zeros and one magnitude. What MLX rounds to 2 bits itself has not, even if what it "
            "is given is ternary: pass the unpacked numbers, or what the model's authors have packed"
        )
    halves = largest.astype(np.float16)
    if (halves.astype(np.float64) != largest).any():
        row, group = (int(i) for i in np.argwhere(halves.astype(np.float64) != largest)[0])
        raise NumericError(
            f"{name} has the scale {largest[row, group]:g} in row {row + first}, columns {group * 4 * size} to "
            f"{(group + 1) * 4 * size - 1}, which float16 does not hold without loss: rescale the matrix"
        )
    # What does not occur may be anything.
    table = np.where(used, np.sign(values), 0).astype(np.int8)
    found = np.take_along_axis(table, digits.astype(np.int64), axis=2)
    halves[halves == 0] = ternary.SMALLEST_SCALE
    return ternary.pack(found.reshape(rows, -1), name=name), halves


def _numbers(values: NDArray[np.float64], used: NDArray[np.bool_]) -> Iterator[str]:
    for value in np.unique(values[used]):
        yield f"{value:g}"
