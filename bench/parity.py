"""This file holds the case `parity`: every option on every backend, compared with the reference.

Whole texts are read at once; then, by a few models, in steps that keep keys and values in every form.

What a benchmark times must first be right: other cases call `require` before they start their clocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from bench.result import Result
from nanochat import backends
from nanochat.config import ModelConfig
from nanochat.errors import BackendError
from nanochat.init import freeze
from nanochat.model import forward
from nanochat.ops import Ops, Storage
from nanochat.proof.choices import logits_and_margins
from nanochat.proof.parity import compare
from nanochat.proof.tolerances import TOLERANCES
from nanochat.slots import slots
from tests.parity.cases import CASES, KEPT
from tests.parity.lockstep import LockstepOps
from tests.parity.random_models import random_weights
from tests.parity.rows import continue_rows, state_of_lengths

__all__ = ["FEW", "require", "run", "table"]

# Each covers several options.
FEW = (
    "grouped_query_attention",
    "delta_by_pattern",
    "shared_expert",
    "adaptive_exit",
    "row_and_token_scales",
    "4_streams_dynamic_sinkhorn",
)
_PART = "part of tolerance"
_LOGITS = "RMS error of logits"
# Where a text of nine tokens is cut.
_STEPS = (5, 6, 8)


@dataclass(frozen=True)
class _Comparison:
    operation: str
    part: float
    # Of the tokens that have the reference's experts, or leave a loop when it does.
    logits: float

    @property
    def passes(self) -> bool:
        return self.part <= 1 and self.logits <= TOLERANCES["logits"].limit


def run(quick: bool) -> Iterator[Result]:
    """Compare all backends that can run here; if `quick`, on a few models.

    Each gives two results: the error of an operation in lockstep, as part of its tolerance, for the operation where
    that part is largest; and the error of the logits when the backend is left alone.
    """
    for name in _backends():
        for option in FEW if quick else CASES:
            yield from _results(option, name, _compare(CASES[option], name))
        for storage in get_args(Storage):
            for option in KEPT[:1] if quick else KEPT:
                found = _compare(CASES[option], name, storage)
                yield from _results(f"{option} kept in {storage}", name, found)


def table(results: Sequence[Result]) -> Table:
    """One row for each option, and for each backend its worst operation and the logits' error."""
    cells: dict[tuple[str, str], list[str]] = {}
    for result in results:
        option, name, what = result.what.split(", ")
        number = f"{result.ours:.2f}" if result.unit == _PART else f"{result.ours:.0e}"
        text = number if result.ok else f"[red]{number} {what}"
        cells.setdefault((option, name), []).append(text)
    drawn = Table(
        "option",
        box=None,
        caption="worst operation's error as part of its tolerance (1 passes); RMS error of the logits "
        f"when left alone ({TOLERANCES['logits'].limit:.0e} passes)",
    )
    for name in dict.fromkeys(name for _, name in cells):
        drawn.add_column(name, justify="right")
        drawn.add_column("logits", justify="right")
    for option in dict.fromkeys(option for option, _ in cells):
        row = [text for (of, _), texts in cells.items() if of == option for text in texts]
        drawn.add_row(option, *row)
    return drawn


def require(*names: str) -> None:
    """Refuse to time backends, or any that can run here if none is named, that disagree with the reference.

    Raises
    ------
    BackendError
        With the operation that is wrong.
    """
    for name in names or _backends():
        for option in FEW:
            found = _compare(CASES[option], name)
            if not found.passes:
                raise BackendError(
                    f"backend {name!r} disagrees with the reference on {option} (worst operation {found.operation}, "
                    f"{found.part:.2g} times its tolerance; logits {found.logits:.2g}): no green, no number; "
                    "run python -m bench parity"
                )


def _backends() -> list[str]:
    return [n for n in backends.names() if n != "reference" and backends.unavailable(n) is None]


def _compare(config: ModelConfig, name: str, kept: Storage | None = None) -> _Comparison:
    """Read two texts at once or, with a form to keep keys and values in, step by step."""
    ops = backends.get(name)
    weights = freeze(random_weights(config))
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (2, 9))
    parts = []
    for equalize in ("operations", "roundings"):
        lockstep = LockstepOps(ops, equalize=equalize)
        _logits(ids, lockstep, lockstep.prepare(weights), config, kept)
        parts.append(lockstep.worst())
    operation, part = max(parts, key=lambda worst: worst[1])
    reference = lockstep.reference
    prepared = reference.prepare(weights)
    expected, margins = logits_and_margins(ids, prepared, config, reference)
    if kept is not None:
        expected = _logits(ids, reference, prepared, config, kept)
    logits = _logits(ids, ops, ops.prepare(weights), config, kept)
    limit = TOLERANCES["logits"].limit
    report = compare(expected, logits, tolerance=limit, margins=margins)
    return _Comparison(operation, part, report.rms_ratio)


def _logits(
    ids: NDArray[np.int64],
    ops: Ops[Any, Any, Any],
    weights: Any,
    config: ModelConfig,
    kept: Storage | None,
) -> NDArray[np.float32]:
    if kept is None:
        return ops.numpy(forward(ops.tokens(ids), weights, config, ops))
    state = state_of_lengths(ops, slots(config, storage=kept), [0] * len(ids), ids.shape[1])
    pieces = np.split(ids, _STEPS, axis=1)
    return np.concatenate(
        [continue_rows(ops, weights, config, state, piece) for piece in pieces], axis=1
    )


def _results(option: str, backend: str, found: _Comparison) -> Iterator[Result]:
    what = f"{option}, {backend}"
    yield _result(f"{what}, {found.operation}", _PART, found.part, 1.0)
    yield _result(f"{what}, logits", _LOGITS, found.logits, TOLERANCES["logits"].limit)


def _result(what: str, unit: str, ours: float, target: float) -> Result:
    return Result(
        case="parity",
        what=what,
        unit=unit,
        ours=ours,
        peer_name="reference",
        target=target,
        ok=ours <= target,
    )
