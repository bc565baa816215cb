"""This file holds the reader of BitNet checkpoints for Hugging Face transformers: ternary linears with one scale each.

Such a folder has the configuration of a transformer whose linears transformers replaces, as ``quantization_config``
says, by one of two classes:

* *bitlinear*: packed codes, and the inverse of the scale that we keep;
* *autobitlinear*: the scale itself, beside codes that are packed or written as numbers; or, with the mode *online*, no
  scale but weights that are rounded whenever they are used.

Both round a linear's input to 8 bits, with one scale per token.

References
----------
.. [1] github.com/huggingface/transformers, src/transformers/integrations/bitnet.py, version 5.23.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.errors import FormatError, NumericError, ShapeError
from nanochat.export.folders.packing import Packing
from nanochat.export.folders.quantization import read_quantization
from nanochat.export.folders.tensors import FolderTensors
from nanochat.export.places import Index, row_slice
from nanochat.weights import Spec, Ternary

__all__ = ["BitnetMatrices"]

# Four codes of 0.
_ZEROS = 0x55
# What transformers takes for the mean magnitude of a matrix of zeros.
_SMALLEST_MEAN = 1e-5
# What a mean in float32 is off by.
_FLOAT32_ERROR = 1e-6


class BitnetMatrices(Packing):
    """See the module."""

    companions = ("weight_scale",)

    def __init__(self, tensors: FolderTensors, fields: Mapping[str, object]) -> None:
        super().__init__(tensors, fields)
        self._stored = read_quantization(fields.get("quantization_config"))
        # The largest relative error of a scale's rounding to float16, and whose.
        self._rounding: tuple[float, str] = (0.0, "")

    def is_ternary(self, module: str, shape: tuple[int, int]) -> bool:
        """See `Packing.is_ternary`: transformers' classes are for linears in the layers."""
        del module, shape
        return False

    def blocks(self, modules: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        del modules
        return {"weight_block": "row", "activation_block": "token"}

    def leaf(self, module: str, shape: tuple[int, int], spec: Spec, rows: Index | None) -> Ternary:
        packed, scale = self._matrix(module, shape)
        # Zeros have no magnitude, and any scale.
        scale = ternary.SMALLEST_SCALE if (packed == _ZEROS).all() else scale
        packed = packed[row_slice(rows)]
        return Ternary(
            packed=packed,
            scales=np.full((len(packed), 1), self._half(module, scale), np.float16),
            columns=spec.shape[1],
            activation_block=spec.activation_block,
        )

    def notes(self) -> list[str]:
        """See `Packing.notes`: scales that float16 does not hold are rounded."""
        error, name = self._rounding
        if error <= _FLOAT32_ERROR:
            return []
        return [
            f"scales are rounded to float16; the largest relative error is {error:.1e}, of {name}"
        ]

    def _matrix(self, name: str, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], float]:
        """Packed codes and scale of a linear."""
        key = f"{name}.weight"
        if self._stored == "none":
            return _round(self.tensors.floats(key, shape))
        if self._stored == "inverse" or self.tensors.described(key).dtype == "U8":
            packed, magnitude = self._repack(key, shape), 1.0
        else:
            packed, magnitude = _recover(key, self.tensors.floats(key, shape))
        scale = self._scale(f"{name}.weight_scale")
        return packed, 1.0 / scale if self._stored == "inverse" else magnitude * scale

    def _repack(self, key: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Four columns to a byte from four rows: bits 2 i and 2 i + 1 of theirs, row r, are row r + i R / 4, plus 1."""
        rows, columns = shape
        if rows % 4:
            raise ShapeError(
                f"{key} has {rows} rows by config.json: packed matrices have a multiple of 4; fetch the model again"
            )
        theirs = np.asarray(self.tensors.take(key, (rows // 4, columns), "U8"), np.uint8)
        ternary.require_legal(theirs, key)
        words = np.ascontiguousarray(theirs).view("<u4")
        ours = np.empty((4, rows // 4, columns // 4), np.uint8)
        for i in range(4):
            # Each byte's pair i, moved down to one byte: the first column's lowest.
            pairs = words >> np.uint32(2 * i) & np.uint32(0x03030303)
            pairs |= pairs >> np.uint32(6)
            ours[i] = pairs & np.uint32(0x0F) | (pairs >> np.uint32(12) & np.uint32(0xF0))
        return ours.reshape(rows, -1)

    def _scale(self, key: str) -> float:
        if key not in self.tensors:
            raise FormatError(
                f"{self.tensors.directory}: {key} is missing, without which its linear has no magnitude; fetch the "
                "model again"
            )
        # Some writers leave the only dimension out.
        shape = () if self.tensors.described(key).shape == () else (1,)
        scale = float(self.tensors.floats(key, shape).sum())
        if scale <= 0:
            raise NumericError(f"{key} is {scale:g}: scales are positive; fetch the model again")
        return scale

    def _half(self, name: str, scale: float) -> np.float16:
        """A scale as the float16 that we keep; the largest error is remembered."""
        largest = float(np.finfo(np.float16).max)
        if not ternary.SMALLEST_SCALE <= scale <= largest:
            raise NumericError(
                f"{name} has the scale {scale:g}: scales are float16, from {ternary.SMALLEST_SCALE:g} to {largest:g}; "
                "rescale the matrix, or fetch the model again"
            )
        half = np.float16(scale)
        self._rounding = max(self._rounding, (abs(float(half) - scale) / scale, name))
        return half


def _round(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """Packed codes and scale as the mode *online* rounds: one mean magnitude for the whole matrix, half to even."""
    mean = np.float32(max(np.abs(weight).mean(dtype=np.float64), _SMALLEST_MEAN))
    codes = np.rint(weight * (np.float32(1) / mean))
    np.clip(codes, -1, 1, out=codes)
    return ternary.pack(codes.astype(np.int8)), float(mean)


def _recover(key: str, weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """Packed codes and magnitude of a matrix whose numbers are ternary already."""
    magnitude = np.abs(weight).max()
    codes = np.sign(weight)
    if not np.array_equal(codes * magnitude, weight):
        raise NumericError(
            f"{key} holds several magnitudes, which the mode offline does not round: it must be ternary; if these are "
            'the weights that training rounds, write "quantization_mode": "online" into config.json'
        )
    return ternary.pack(codes.astype(np.int8)), float(magnitude)
