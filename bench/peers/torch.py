"""This file holds torch's products with a ternary matrix, as peers of ours: bfloat16 and 8 bits, neither of 2 bits.

Both take and return float32 as all peers do, and convert inside; torch has no ternary product for a CPU. The number of
threads is the process's: each call sets it.
"""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.errors import BackendError

__all__ = ["Bfloat16", "Int8"]

# Fastest first. The last is what Arm has.
_ENGINES = ("x86", "fbgemm", "onednn", "qnnpack")


class Bfloat16:
    """`torch.nn.functional.linear` of the dequantised weights and the activations, both rounded to bfloat16.

    It moves 16 bits for each weight, and agrees with the contract's product to about 1e-2: the contract rounds
    activations to 8 bits, bfloat16 to 8 bits of mantissa.

    Parameters
    ----------
    codes : int8 array, shape (R, C), values in {-1, 0, 1}
    scales : float16 array, shape (R, C / 256)
    threads : int
    """

    def __init__(
        self, codes: NDArray[np.int8], scales: NDArray[np.float16], *, threads: int
    ) -> None:
        self._weight = torch.from_numpy(ternary.dequantize(codes, scales)).bfloat16()
        self._threads = threads

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The product, float32, (N, R)."""
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            y = torch.nn.functional.linear(torch.from_numpy(x).bfloat16(), self._weight)
            return y.float().numpy()


class Int8:
    """`torch.ops.quantized.linear_dynamic`, what `quantize_dynamic` makes of a linear: integer sums of 8-bit numbers.

    It moves 8 bits for each weight. Each row of the dequantised weights is rounded to 8 bits with one scale, and all
    activations of a call to 7 bits with one scale and a zero point: more would overflow int16 sums where a CPU has no
    VNNI. It agrees with the contract's product to a few hundredths.

    Of torch 2.13's products of 8 bits this is the fastest on AVX-512, for 1 and for 64 tokens: `_int_mm` with roundings
    around it takes 1.4 to 1.6 times as long, `_weight_int8pack_mm` 3 to 5 times.

    Parameters
    ----------
    codes : int8 array, shape (R, C), values in {-1, 0, 1}
    scales : float16 array, shape (R, C / 256)
    threads : int

    Raises
    ------
    BackendError
        If torch has no such product for this CPU.
    """

    def __init__(
        self, codes: NDArray[np.int8], scales: NDArray[np.float16], *, threads: int
    ) -> None:
        reason = self.unavailable()
        if reason is not None:
            raise BackendError(reason)
        weight = torch.from_numpy(ternary.dequantize(codes, scales))
        row_scales = weight.abs().amax(1).clamp(min=ternary.SMALLEST_SCALE) / 127
        engine = torch.backends.quantized.engine
        with warnings.catch_warnings():
            # The type is deprecated, the product has no successor as fast.
            warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
            try:
                torch.backends.quantized.engine = _engines()[0]
                zeros = torch.zeros(len(weight), dtype=torch.int64)
                quantized = torch.quantize_per_channel(
                    weight, row_scales.double(), zeros, 0, torch.qint8
                )
                self._packed = torch.ops.quantized.linear_prepack(quantized, None)
            finally:
                torch.backends.quantized.engine = engine
        self._threads = threads

    @staticmethod
    def unavailable() -> str | None:
        """Why it cannot run, or None."""
        if _engines() and hasattr(torch.ops.quantized, "linear_dynamic"):
            return None
        return (
            f"torch {torch.__version__} has no 8-bit linear for this CPU: pip install torch==2.13.0"
        )

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The product, float32, (N, R)."""
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            # The last argument asks for 7 bits.
            y = torch.ops.quantized.linear_dynamic(torch.from_numpy(x), self._packed, True)
            return np.asarray(y)


def _engines() -> list[str]:
    return [name for name in _ENGINES if name in torch.backends.quantized.supported_engines]
