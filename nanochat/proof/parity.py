"""This file holds the parity report: how far the logits of an exported file are from the model's own.

A runtime that rounds no activations is compared with a reference that rounds none, either.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanochat import backends
from nanochat.backends.reference.ops import Leaf, ReferenceOps
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import NumericError, ShapeError
from nanochat.generation.engine import Engine, Runner
from nanochat.init import widened
from nanochat.model import forward
from nanochat.ops import Ops
from nanochat.proof.choices import NEAR, chooses, logits_and_margins
from nanochat.proof.tolerances import TOLERANCES
from nanochat.rows import RowState
from nanochat.shapes import num_parameters, shapes
from nanochat.weights import Stored, Weights, map_leaves, named_leaves

__all__ = [
    "Artefact",
    "Parity",
    "Report",
    "Rounding",
    "UnroundedOps",
    "check_parity",
    "compare",
    "greedy",
    "least_equal",
    "reference_backend",
]

State = TypeVar("State", bound=RowState[Any])
Rounding = Literal["same", "other", "none"]

_EQUAL = TOLERANCES["unflipped"].limit


@dataclass(frozen=True, kw_only=True)
class Report:
    """The distance between two arrays of logits for the same tokens.

    Parameters
    ----------
    rms_ratio : float
        RMS of the difference over RMS of the reference, all tokens together that have not parted.
    share_parted : float
        Share of the tokens that are further apart than the tolerance and so near another expert, or another step to
        leave a loop at, that a flipped rounding gives it to them; see `nanochat.proof.choices`.
    median_ratio : float
        Median of the tokens' own RMS ratios; of `check_parity`, those of pairs.
    max_abs : float
        Largest difference of a single logit.
    tolerance, share_within : float
        An RMS ratio, and the share of the tokens whose own is at most that.
    share_same_greedy : float
        Share of the tokens after which both choose the same next token.
    share_equal : float
        Share of the tokens whose own RMS ratio is at most 1e-5: no rounding of theirs has flipped.
    least_equal : float
        Share of equal tokens below which the artefact computes something else.
    """

    num_tokens: int
    rms_ratio: float
    median_ratio: float
    max_abs: float
    tolerance: float
    share_within: float
    share_same_greedy: float
    share_equal: float
    least_equal: float = 0.0
    share_parted: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the tokens together are within the tolerance, enough of them equal, and few of them parted."""
        few = self.share_parted <= TOLERANCES["parted"].limit
        return few and self.rms_ratio <= self.tolerance and self.share_equal >= self.least_equal

    def __str__(self) -> str:
        verdict = "within" if self.ok else "OUTSIDE"
        parted = ""
        if self.share_parted:
            parted = f"; {self.share_parted:.1%} have another expert or loop step, and are left out of it"
        return (
            f"{self.num_tokens} tokens: RMS ratio {self.rms_ratio:.2e}, {verdict} the tolerance of "
            f"{self.tolerance:.0e}{parted}; median token {self.median_ratio:.1e}; largest difference "
            f"{self.max_abs:.2e}; "
            f"{self.share_within:.1%} of the tokens within; same greedy token {self.share_same_greedy:.1%}; "
            f"equal to 1e-05 {self.share_equal:.1%}, at least {self.least_equal:.1%} needed"
        )


class Artefact(Protocol):
    """An exported model at work in the runtime of its users.

    Attributes
    ----------
    runtime : str
        What runs it, with its version, for reports.
    tolerance : float
        RMS ratio of logits up to which this runtime computes the same model: larger where it rounds otherwise.
    rounding : {"same", "other", "none"}
        How it rounds activations. "same": as the reference does, so that tokens without a flipped rounding are equal to
        1e-5. "other": in other blocks, as llama.cpp does. "none": not at all; it is compared with `UnroundedOps`, and
        the two agree as well as float32 lets them.
    """

    runtime: str
    tolerance: float
    rounding: Rounding

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after every token of a new sequence, (T, vocabulary)."""
        ...

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        """The most probable tokens after a new sequence, one after the other, as the runtime generates them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What an artefact was found to compute, beside the model that it was written from.

    `reference` is the backend that it was compared with, and `report` of the logits of a prompt. `tokens` and
    `expected_tokens` are what the artefact and the reference write after the prompt's beginning, greedily.
    `rounding_error` is the RMS ratio of the logits of a reference that rounds no activations, if it was compared with
    that, to the model's.
    """

    runtime: str
    reference: str
    report: Report
    tokens: tuple[int, ...]
    expected_tokens: tuple[int, ...]
    rounding_error: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the logits pass; see `Report.ok`."""
        return self.report.ok

    @property
    def same_text(self) -> bool:
        """Whether both write the same tokens."""
        return self.tokens == self.expected_tokens

    def to_dict(self) -> dict[str, object]:
        """All of it, ready for JSON."""
        return {
            "runtime": self.runtime,
            "reference": self.reference,
            **dataclasses.asdict(self.report),
            "tokens": list(self.tokens),
            "expected_tokens": list(self.expected_tokens),
            "rounding_error": self.rounding_error,
            "same_text": self.same_text,
            "ok": self.ok,
        }

    def __str__(self) -> str:
        text = "the same greedy text" if self.same_text else "another greedy text"
        error = self.rounding_error
        rounding = f"; rounding of activations makes {error:.1e}" if error else ""
        return f"{self.runtime} beside {self.reference}, {self.report}; {text}{rounding}"


# The fixed prompt. Its tokens depend on the model's tokenizer.
_PROMPT = (
    'fn main() { println!("The quick brown fox jumps over the lazy dog."); } // 0123456789\n' * 4
)
_PROMPT_TOKENS = 32
# Tokens of the prompt that text is generated from, and how many.
_BEGINNING = 8
_GENERATED = 16
# Parameters from which on the compiled backend stands for the reference.
_LARGE = 100_000_000


def check_parity(bundle: Bundle, artefact: Artefact) -> Parity:
    """Run an exported model and the reference on a fixed prompt, and compare their logits and greedy text.

    If the artefact rounds as the reference does, each pair of neighbours of the prompt is run as a sequence of its own,
    too: in so few tokens few roundings can flip, and a fair share of the logits must be equal to 1e-5, which nothing
    reaches that computes something else.
    """
    config = bundle.config
    name, ops = reference_backend(config)
    reference = Engine(config, ops.prepare(bundle.weights), ops)
    model = reference
    if artefact.rounding == "none":
        ops = UnroundedOps()
        name, reference = ops.name, Engine(config, ops.prepare(bundle.weights), ops)
    ids = [*bundle.tokenizer.opening, *bundle.tokenizer.encode(_PROMPT)]
    ids = ids[: min(_PROMPT_TOKENS, config.context_length)]
    expected, margins = _expected(ids, reference)
    report = compare(expected, artefact.logits(ids), tolerance=artefact.tolerance, margins=margins)
    error = 0.0 if model is reference else compare(model.logits(ids), expected).rms_ratio
    if artefact.rounding == "same" and len(ids) > 1:
        pairs = sorted(set(itertools.pairwise(ids)))
        # The second token of each: where a token stands matters from there on.
        pair_logits = forward(ops.tokens(np.array(pairs, np.int64)), reference.weights, config, ops)
        short = compare(
            ops.numpy(pair_logits)[:, 1], np.stack([artefact.logits(pair)[1] for pair in pairs])
        )
        report = dataclasses.replace(
            report,
            median_ratio=short.median_ratio,
            share_equal=short.share_equal,
            least_equal=least_equal(config),
        )
    beginning = ids[:_BEGINNING]
    num_tokens = min(_GENERATED, config.context_length - len(beginning))
    return Parity(
        runtime=artefact.runtime,
        reference=name,
        report=report,
        tokens=tuple(artefact.greedy(beginning, num_tokens=num_tokens)),
        expected_tokens=tuple(greedy(reference, beginning, num_tokens=num_tokens)),
        rounding_error=error,
    )


def _expected(
    ids: Sequence[int], engine: Engine[Any, Any, Any]
) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
    if not chooses(engine.config):
        return engine.logits(ids), None
    sequence = np.array([ids], np.int64)
    logits, margins = logits_and_margins(sequence, engine.weights, engine.config, engine.ops)
    return logits[0], margins[0]


class UnroundedOps(ReferenceOps):
    """`ReferenceOps` on dense weights of the same values, four bytes for each; what is dense it does not round."""

    name = "reference without rounded activations"

    def prepare(self, weights: Weights[Stored]) -> Weights[Leaf]:
        """Dequantise all leaves."""
        return map_leaves(widened, weights)


def least_equal(config: ModelConfig) -> float:
    """Half of the share of two-token sequences in which no rounding flips; 0 for models so large that hardly any is.

    Each rounded number flips with a probability of about 1e-5, measured on `nanochat-tiny`.
    """
    rounded = sum(
        spec.shape[1] for _, spec in named_leaves(shapes(config)) if spec.kind == "ternary"
    )
    share = math.exp(-2 * config.loop_count * rounded * 1e-5) / 2
    return share if share > 0.02 else 0.0


def reference_backend(config: ModelConfig) -> tuple[str, Ops[Any, Any, Any]]:
    """The reference backend; for models so large that it would take minutes, the compiled one, which agrees with it."""
    large = num_parameters(config) > _LARGE
    name = "numba" if large and backends.unavailable("numba") is None else "reference"
    return name, backends.get(name)


def greedy(runner: Runner[State], ids: Sequence[int], *, num_tokens: int) -> list[int]:
    """What a model writes; special tokens do not end it, so that there is something to compare."""
    state, logits = runner.prefill(ids, capacity=len(ids) + num_tokens)
    tokens: list[int] = []
    for _ in range(num_tokens):
        tokens.append(int(logits.argmax()))
        if len(tokens) < num_tokens:
            logits = runner.decode(tokens[-1:], state)[0]
    return tokens


def compare(
    reference: NDArray[np.float32],
    artefact: NDArray[np.float32],
    *,
    tolerance: float = TOLERANCES["no rounding"].limit,
    margins: NDArray[np.float64] | None = None,
) -> Report:
    """Measure the logits of an exported file against those of the model that it was written from.

    Both are for the same tokens, (..., vocabulary); `margins` (...) are those of the reference's choices, see
    `nanochat.proof.choices`.

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
    found = artefact.reshape(rows.shape).astype(np.float64)
    difference = found - rows
    ratios = _ratio(_rms(difference, 1), _rms(rows, 1))
    parted = np.zeros(len(rows), bool)
    if margins is not None:
        parted = (margins.reshape(-1) <= NEAR * tolerance) & (ratios > tolerance)
    others = ~parted if not parted.all() else parted
    return Report(
        num_tokens=len(rows),
        rms_ratio=float(_ratio(_rms(difference[others], None), _rms(rows[others], None))),
        share_parted=float(parted.mean()),
        median_ratio=float(np.median(ratios)),
        max_abs=float(np.abs(difference).max()),
        tolerance=tolerance,
        share_within=float((ratios <= tolerance).mean()),
        share_same_greedy=float((rows.argmax(axis=1) == found.argmax(axis=1)).mean()),
        share_equal=float((ratios <= _EQUAL).mean()),
    )


def _rms(values: NDArray[np.float64], axis: int | None) -> NDArray[np.float64]:
    return np.asarray(np.sqrt(np.square(values).mean(axis=axis)))


def _ratio(error: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    # Logits that are all zero have no scale of their own; only equal ones are close to them.
    return np.where(
        scale > 0, error / np.where(scale > 0, scale, 1), np.where(error > 0, np.inf, 0)
    )
