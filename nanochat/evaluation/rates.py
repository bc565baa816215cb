"""This file holds the rates of a model's programs: how many end, compile, run and are right, with their intervals.

All are over *all* samples, but for two shares of shares, and problems are the sampling unit.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nanochat.errors import InputError
from nanochat.evaluation.estimates import Estimate, pass_at_k, rate
from nanochat.rust.verdict import COMPILES, RUNS, VERDICTS, Verdict

__all__ = ["MEANINGS", "Judged", "Rates", "rates"]

# The rates, and what each says.
MEANINGS = {
    "ends": "the function closes within the tokens that were given",
    "compiles": "it ends, and type-checks together with its prompt",
    "runs": "it compiles, and returns on all inputs without a panic or a limit",
    "passes": "it runs, and returns what is right",
    "correct": "of what compiles, how much passes",
    "trivial": "of what runs, how much returns a literal, a parameter or always the same",
}


class Judged(NamedTuple):
    """What was found of one sample."""

    problem: str
    sample: int
    verdict: Verdict
    is_trivial: bool


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Rates of one model on some problems.

    Parameters
    ----------
    num_problems, num_samples : int
        How many problems, and samples of each.
    rates : mapping of str to Estimate
        By the names of :data:`MEANINGS`, and ``pass@k`` for each k.
    verdicts : mapping of Verdict to int
        How many samples got each.
    """

    num_problems: int
    num_samples: int
    rates: Mapping[str, Estimate]
    verdicts: Mapping[Verdict, int]


def rates(judged: Sequence[Judged], *, ks: Sequence[int] = (1,)) -> Rates:
    """The rates of samples.

    Parameters
    ----------
    judged : sequence of Judged
        The same number of samples for every problem, and none that the machine has failed.
    ks : sequence of int
        For which k pass@k is told.

    Raises
    ------
    InputError
        If there are none, or a problem lacks samples, or a k is above their number.
    """
    of: dict[str, list[Judged]] = {}
    for each in judged:
        of.setdefault(each.problem, []).append(each)
    if not of:
        raise InputError("no samples were judged, so there are no rates: draw some")
    num_samples = len(next(iter(of.values())))
    for problem, samples in of.items():
        if len(samples) != num_samples:
            raise InputError(
                f"{problem} has {len(samples)} samples, and others {num_samples}: without all of them, its rate would "
                "be another; go on drawing"
            )
        if any(each.verdict == "infrastructure" for each in samples):
            raise InputError(
                f"samples of {problem} could not be judged, because the machine failed: judge again"
            )

    def counts(holds: Sequence[Verdict]) -> list[int]:
        return [sum(each.verdict in holds for each in samples) for samples in of.values()]

    ended = [verdict for verdict in VERDICTS if verdict != "open"]
    compiled, ran, passed = counts(COMPILES), counts(RUNS), counts(("pass",))
    trivial = [sum(each.is_trivial for each in s if each.verdict in RUNS) for s in of.values()]
    all_of_them = [num_samples] * len(of)
    found = {
        "ends": rate(counts(ended), all_of_them),
        "compiles": rate(compiled, all_of_them),
        "runs": rate(ran, all_of_them),
        "passes": rate(passed, all_of_them),
        "correct": rate(passed, compiled),
        "trivial": rate(trivial, ran),
    }
    for k in ks:
        found[f"pass@{k}"] = rate([pass_at_k(num_samples, count, k) for count in passed])
    number = Counter(each.verdict for each in judged)
    return Rates(
        num_problems=len(of),
        num_samples=num_samples,
        rates=found,
        verdicts={verdict: number[verdict] for verdict in VERDICTS if number[verdict]},
    )
