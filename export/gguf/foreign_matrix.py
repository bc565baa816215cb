"""This file holds ternary matrices as other people's GGUF files have them, and how their scales fit our blocks."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.errors import NumericError
from nanochat.export.gguf.types import TensorType, unpack_ternary

__all__ = ["Matrix", "read_matrix"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """A packed matrix (R, C) with a scale for each of B blocks of a row.

    Parameters
    ----------
    packed : uint8 array, shape (R, C / 4)
    scales : float16 array, shape (R, B)
    zero : bool array, shape (R, B)
        Blocks of zeros, whose scales mean nothing.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zero: NDArray[np.bool_]

    def with_rows(self, order: NDArray[np.int64]) -> "Matrix":
        """The same with its rows in another order."""
        return Matrix(packed=self.packed[order], scales=self.scales[order], zero=self.zero[order])

    def times(self, factor: float, name: str) -> tuple["Matrix", float]:
        """The same with its scales multiplied, and the largest relative error of their rounding to float16.

        Raises
        ------
        NumericError
            If a product is none that float16 holds well.
        """
        products = np.where(self.zero, 1.0, self.scales.astype(np.float64) * factor)
        largest = float(np.finfo(np.float16).max)
        # Written so that NaN fails, too.
        if not ((products >= ternary.SMALLEST_SCALE) & (products <= largest)).all():
            raise NumericError(
                f"{name} is {factor:g} and makes scales outside {ternary.SMALLEST_SCALE:g} to {largest:g}, which is "
                "what float16 holds; rescale the matrix, or fetch the file again"
            )
        scales = products.astype(np.float16)
        error = float((np.abs(scales.astype(np.float64) - products) / products).max())
        return replace(self, scales=scales), error

    def shared(self, count: int) -> NDArray[np.float16] | None:
        """Scales (R, count) of larger or smaller blocks; None if blocks that would share one differ."""
        rows, blocks = self.scales.shape
        if count % blocks == 0:
            repeated = np.where(self.zero, np.float16(ternary.SMALLEST_SCALE), self.scales)
            return np.repeat(repeated, count // blocks, axis=1)
        if blocks % count:
            return None
        scales = self.scales.reshape(rows, count, -1)
        zero = self.zero.reshape(scales.shape)
        largest = np.where(zero, np.float16(0), scales).max(axis=2)
        if not (zero | (scales == largest[:, :, None])).all():
            return None
        return np.where(zero.all(axis=2), np.float16(ternary.SMALLEST_SCALE), largest)


def read_matrix(kind: TensorType, data: NDArray[np.uint8], *, name: str) -> Matrix:
    """A matrix from its bytes.

    Parameters
    ----------
    kind : TensorType
        TQ1_0, TQ2_0 or Q2_0.
    data : uint8 array, shape (R, bytes of a row)
    name : str
        For errors.

    Raises
    ------
    NumericError
        If a code is none of -1, 0, 1, or a scale is negative or not finite.
    """
    rows = len(data)
    blocks = data.shape[1] // kind.bytes
    codes, scales = unpack_ternary(kind, data, num_scales=blocks, name=name)
    ternary.require_finite(scales, f"the scales of {name}")
    if (scales < 0).any():
        raise NumericError(
            f"{name} has the scale {scales.min():g}: scales are positive; fetch the file again"
        )
    grouped = codes.reshape(rows, blocks, -1)
    # A scale of 0 makes zeros of all codes.
    zero = (scales == 0) | ~grouped.any(axis=2)
    grouped[zero] = 0
    return Matrix(packed=ternary.pack(codes), scales=scales, zero=zero)
