"""This file holds the parity report: how far the logits of an exported file are from the model's own."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import NumericError, ShapeError

__all__ = ["Report", "compare"]


# What float32 additions in another order may differ by.
_EQUAL = 1e-5


@dataclass(frozen=True, kw_only=True)
class Report:
    """The distance between two arrays of logits for the same tokens.

    Parameters
    ----------
    num_tokens : int
        Tokens compared.
    rms_ratio : float
        RMS of the difference over RMS of the reference, all tokens together.
    max_abs : float
        Largest difference of a single logit.
    tolerance : float
        RMS ratio up to which a token counts as equal.
    share_within : float
        Share of the tokens whose own RMS ratio is at most `tolerance`.
    share_same_greedy : float
        Share of the tokens after which both choose the same next token.
    share_equal : float
        Share of the tokens whose own RMS ratio is at most 1e-5: no rounding of theirs has flipped.
    least_equal : float
        Share of equal tokens below which the artefact computes something else.
    """

    num_tokens: int
    rms_ratio: float
    max_abs: float
    tolerance: float
    share_within: float
    share_same_greedy: float
    share_equal: float
    least_equal: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all tokens together are within the tolerance, and enough of them equal."""
        return self.rms_ratio <= self.tolerance and self.share_equal >= self.least_equal

    def to_json(self) -> str:
        """One JSON object on one line: the fields and `ok`."""
        return json.dumps({**dataclasses.asdict(self), "ok": self.ok})

    def __str__(self) -> str:
        verdict = "within" if self.ok else "OUTSIDE"
        return (
            f"{self.num_tokens} tokens: RMS ratio {self.rms_ratio:.2e}, {verdict} the tolerance of "
            f"{self.tolerance:.0e}; largest difference {self.max_abs:.2e}; "
            f"{self.share_within:.1%} of the tokens within; same greedy token {self.share_same_greedy:.1%}; "
            f"equal to 1e-05 {self.share_equal:.1%}, at least {self.least_equal:.1%} needed"
        )


def compare(
    reference: NDArray[np.float32], artefact: NDArray[np.float32], *, tolerance: float = 1e-4
) -> Report:
    """Measure the logits of an exported file against those of the model that it was written from.

    Parameters
    ----------
    reference, artefact : float array, shape (..., vocabulary)
        Logits for the same tokens.
    tolerance : float
        RMS ratio up to which logits count as equal.

    Raises
    ------
    ShapeError
        If the shapes differ, or there is nothing to compare.
    NumericError
        If a logit is not finite.

    Examples
    --------
    >>> report = compare(np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]]))
    >>> report.rms_ratio, report.max_abs, report.share_same_greedy, report.ok
    (0.1, 0.5, 1.0, False)
    """
    if reference.shape != artefact.shape or reference.size == 0:
        raise ShapeError(
            f"cannot compare logits of shapes {reference.shape} and {artefact.shape}: "
            "run both on the same tokens, at least one"
        )
    for name, logits in (("reference", reference), ("artefact", artefact)):
        if not np.isfinite(logits).all():
            raise NumericError(
                f"the logits of the {name} are not all finite: they must be; check its weights"
            )
    rows = reference.reshape(-1, reference.shape[-1]).astype(np.float64)
    others = artefact.reshape(rows.shape).astype(np.float64)
    difference = others - rows
    ratios = _ratio(_rms(difference, 1), _rms(rows, 1))
    return Report(
        num_tokens=len(rows),
        rms_ratio=float(_ratio(_rms(difference, None), _rms(rows, None))),
        max_abs=float(np.abs(difference).max()),
        tolerance=tolerance,
        share_within=float((ratios <= tolerance).mean()),
        share_same_greedy=float((rows.argmax(axis=1) == others.argmax(axis=1)).mean()),
        share_equal=float((ratios <= _EQUAL).mean()),
    )


def _rms(values: NDArray[np.float64], axis: int | None) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.square(values).mean(axis=axis)))


def _ratio(error: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    # Logits that are all zero have no scale of their own; only equal ones are close to them.
    return np.where(
        scale > 0, error / np.where(scale > 0, scale, 1), np.where(error > 0, np.inf, 0)
    )
