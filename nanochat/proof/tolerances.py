"""This file holds the tolerances of all comparisons between backends, runtimes and records, with the reason for each.

An error is the root mean square (RMS) of the differences divided by that of the reference. A tolerance of 0 asks for
equal numbers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["TOLERANCES", "Tolerance", "rms_error"]


@dataclass(frozen=True)
class Tolerance:
    """The largest error that passes, and why it is not smaller."""

    limit: float
    reason: str


_COPY = Tolerance(0, "numbers are moved, not computed")
_ELEMENTWISE = Tolerance(
    1e-6, "a few float32 roundings, and an exponential that is off by 3e-7 on MLX's CPU"
)
_SUM = Tolerance(1e-6, "one float32 sum, whose order is free")

# By operation: both backends are given the same numbers, then their results are compared.
TOLERANCES = {
    "embed": Tolerance(0, "a code of 8 bits times a scale of 11 fits into float32's 24"),
    "rms_norm": _SUM,
    "project": Tolerance(1e-6, "the integer sums are equal; float32 sums of the blocks, and products where there are "
                         "no integer ones"),
    # The project of dense leaves; routers and gates have few rows.
    "dense project": Tolerance(3e-6, "a float32 sum whose terms may cancel, and few of them to average over"),
    "rotate": Tolerance(0, "IEEE 754 additions in an order that is specified"),
    "scale": Tolerance(0, "IEEE 754 multiplication is correctly rounded"),
    "add": Tolerance(0, "IEEE 754 addition is correctly rounded"),
    "parameter": _COPY,
    "last": _COPY,
    "split_heads": _COPY,
    "merge_heads": _COPY,
    "rope": Tolerance(1e-6, "angles are equal; cosines and sines may differ by one rounding"),
    "attention": Tolerance(1e-5, "exponentials of float32 sums: an error of a score becomes one of its share"),
    "short_conv": _ELEMENTWISE,
    "delta_rule": Tolerance(1e-5, "a recurrence over all tokens, or its chunked form with other products"),
    "swiglu": _ELEMENTWISE,
    "relu2": _ELEMENTWISE,
    "gate": _ELEMENTWISE,
    "experts": Tolerance(1e-5, "a network and a softmax, for three tokens of four, in which no rounding flips"),
    "experts, a rounding flipped": Tolerance(3e-2, "inside a network, a difference of 1e-7 can turn a rounding the "
                                             "other way"),
    "mhc_open": _COPY,
    "mhc_read": Tolerance(2e-6, "up to 20 normalisations of the mixing matrix, each with its roundings"),
    "mhc_write": _SUM,
    "mhc_close": _SUM,
    "survival": _ELEMENTWISE,
    "loop": _COPY,
    "select": _COPY,
    "cross_entropy": Tolerance(2e-6, "the logarithm of a float32 sum of exponentials, less a logit that may be near"),
    # Whole models, in a runtime that rounds activations as the reference does.
    "integer sums": Tolerance(0, "integers have no rounding"),
    "drift": Tolerance(1e-5, "float32 numbers that took their own way from one rounding to int8 to the next"),
    "unflipped": Tolerance(1e-5, "float32 additions in another order, where no rounding to int8 turned the other way"),
    "logits": Tolerance(3e-2, "a difference of 1e-7 can turn one rounding to int8 the other way, and the next layers "
                        "then work on other integers"),
    "layer": Tolerance(6e-2, "one flipped rounding changes a token by up to 1e-2, and later layers add to it: 3.2e-2 "
                       "in 24 untrained ones with four streams, 1.9e-2 with one stream"),
    "parted": Tolerance(0.5, "of tokens that are near another expert, or another step to leave a loop at, a few get "
                        "it; they are counted apart, and nothing is said of a model of which that is most"),
    # In a runtime that does not.
    "no rounding": Tolerance(1e-4, "float32 additions in another order, through all layers"),
    "mlx-lm, rotated": Tolerance(5e-3, "it rounds embeddings to float16, before and after they are turned back"),
    "llama.cpp": Tolerance(6e-2, "it rounds activations in blocks of 256 or 32, which is another rounding, whose noise "
                           "grows with the layers: 3.8e-2 for 12 random ones and a tied head, 1.1e-2 for trained ones"),
    "llama.cpp, float16": Tolerance(3e-3, "inputs of matrices, keys and values are rounded to 11 bits, none to 8; this "
                                    "shows that the numbers are the model's"),
    # Shares of positions after which another token is the most probable one, and how far below the best that may be.
    "top-1": Tolerance(0.02, "at 1 % of the positions the best two are as near as a flipped rounding moves them, and "
                       "which roundings flip differs from CPU to CPU"),
    "top-1, no rounding": Tolerance(0.01, "the best two may be as near as float32 or float16 additions"),
    "top-1, llama.cpp": Tolerance(0.10, "another rounding moves every logit by 1e-2 to 3e-2 of their RMS, and at 2 to "
                                  "5 % of the positions of a random model the best two are nearer than that"),
    "tie": Tolerance(6, "RMS errors: of the few tokens near the best none errs by more than four, and two may part by "
                     "1.4 times as much"),
}  # fmt: skip


def rms_error(x: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """RMS of the differences over RMS of the reference.

    Infinite for other shapes, for a NaN or an infinity on one side only, and for any number where all should be 0.

    Examples
    --------
    >>> rms_error(np.array([3.0, 4.125], np.float32), np.array([3.0, 4.0], np.float32))
    0.025
    """
    if x.shape != reference.shape:
        return float("inf")
    same = x == reference
    if same.all():
        return 0.0
    difference = np.subtract(x, reference, dtype=np.float64, where=~same, out=np.zeros(x.shape))
    scale = np.sqrt(np.mean(np.square(reference, dtype=np.float64)))
    error = np.sqrt(np.mean(difference**2))
    return float(error / scale) if np.isfinite(error) and scale > 0 else float("inf")
