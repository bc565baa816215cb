"""This file holds the comparison of two models by what was found of their programs, problem by problem."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nanochat.errors import InputError
from nanochat.evaluation.estimates import Estimate, difference
from nanochat.evaluation.programs import VERDICTS_FILE, read_judged
from nanochat.evaluation.rates import Judged
from nanochat.evaluation.results import read_result
from nanochat.rust.verdict import COMPILES, RUNS, Verdict

__all__ = ["compare"]

_COMPARED: Mapping[str, Sequence[Verdict]] = {
    "compiles": COMPILES,
    "runs": RUNS,
    "passes": ("pass",),
}


def compare(first: Path, second: Path) -> dict[str, Estimate]:
    """By how much the rates of a second model are above those of a first, paired by problem.

    Parameters
    ----------
    first, second : Path
        Folders that `nanochat eval` has written.

    Raises
    ------
    InputError
        If they were evaluated on different problems, or by different settings.
    """
    before, after = (_settings(read_result(folder), folder) for folder in (first, second))
    for name, value in before.items():
        if after[name] != value:
            raise InputError(
                f"{first} and {second} differ in {name} ({value} and {after[name]}): evaluate both by the same"
            )
    tables = [_by_problem(read_judged(folder / VERDICTS_FILE)) for folder in (first, second)]
    names = sorted(tables[0])
    found = {}
    for kind, verdicts in _COMPARED.items():
        shares = [[_share(table[name], verdicts) for name in names] for table in tables]
        found[kind] = difference(*shares)
    return found


def _settings(result: Mapping[str, object], folder: Path) -> dict[str, object]:
    programs = result.get("programs")
    if not isinstance(programs, Mapping):
        raise InputError(f"{folder} holds no programs: evaluate with --problems")
    drawing = result["drawing"]
    assert isinstance(drawing, Mapping)
    return {**drawing, **{name: programs[name] for name in ("problems_sha256", "input_seed")}}


def _by_problem(judged: Sequence[Judged]) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for one in judged:
        found.setdefault(one.problem, []).append(one.verdict)
    return found


def _share(found: Sequence[Verdict], wanted: Sequence[Verdict]) -> float:
    return sum(verdict in wanted for verdict in found) / len(found)
