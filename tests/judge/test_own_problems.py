"""Problems of our own are sound: right bodies pass before the real judge, and all others fail."""

import pytest

from nanochat.judge.judge import Judge, Sample
from nanochat.problems.own import own_problems
from nanochat.problems.problem import Problem
from nanochat.problems.soundness import Candidate, candidates
from nanochat.problems.templates import template_problems

# Of so many problems, one is tried every time; with --long, all are.
_SHARE = 12


def wrongly_judged(
    bodies: list[tuple[Problem, Candidate]], seed: int
) -> list[tuple[str, str, str]]:
    """The bodies that do not get what they must: their problem, text and verdict."""
    with Judge() as judge:
        found = judge.judge([Sample(p, c.body) for p, c in bodies], seed=seed)
    return [
        (problem.id, candidate.body, of.verdict)
        for (problem, candidate), of in zip(bodies, found, strict=True)
        if (of.verdict == "pass") != candidate.passes
    ]


def test_every_reference_passes() -> None:
    bodies = [
        (problem, candidate)
        for problem in own_problems()
        for candidate in candidates(problem)
        if candidate.kind == "reference"
    ]

    assert len(bodies) > 200
    assert wrongly_judged(bodies, seed=3) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_trivial_or_changed_fails(seed: int, request: pytest.FixtureRequest) -> None:
    problems = [*own_problems()]
    if not request.config.getoption("--long"):
        problems = problems[seed::_SHARE]
    bodies = [
        (problem, candidate)
        for problem in problems
        for candidate in candidates(problem)
        if candidate.kind not in ("endless", "reference")
    ]

    assert wrongly_judged(bodies, seed) == []


def test_one_template_of_each_family_is_sound(request: pytest.FixtureRequest) -> None:
    families = {problem.family: problem for problem in template_problems()}
    problems = [*families.values()]
    if not request.config.getoption("--long"):
        problems = problems[::4]
    bodies = [
        (problem, candidate)
        for problem in problems
        for candidate in candidates(problem)
        if candidate.kind != "endless"
    ]

    assert wrongly_judged(bodies, seed=0) == []
