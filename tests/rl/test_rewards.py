"""Rewards pay for what they say, in the words of other people's trainers, too."""

from collections.abc import Iterator
from typing import Literal

import pytest

from nanochat.errors import InputError
from nanochat.judge.judge import Judgement
from nanochat.problems.problem import Problem
from nanochat.rl.rewards import CompilerReward, reward_of, shared
from nanochat.rust.verdict import VERDICTS, Verdict
from tests.judge.completions import LARGER

PAID: dict[str, dict[str, float]] = {
    "pass": {"pass": 1.0},
    "staged": {"pass": 1.0, "wrong": 0.2},
    "compile": dict.fromkeys(("pass", "wrong", "panic", "crash", "limit"), 1.0),
}


@pytest.mark.parametrize("kind", ["pass", "staged", "compile"])
@pytest.mark.parametrize("verdict", VERDICTS)
def test_each_verdict_earns_what_is_written(
    verdict: Verdict, kind: Literal["pass", "staged", "compile"]
) -> None:
    found = Judgement(verdict, " if a > b { b } else { a } }")
    expected = None if verdict == "infrastructure" else PAID[kind].get(verdict, 0.0)

    assert reward_of(found, LARGER, kind) == expected
    assert reward_of(found, LARGER, kind, trivial=False) == expected


@pytest.mark.parametrize(
    ("body", "trivial"), [(" a }", True), (" a - b + b - a }", True), (" a + 1 /* b */ }", False)]
)
def test_what_is_no_attempt_may_earn_nothing_if_it_is_wrong(body: str, trivial: bool) -> None:
    wrong, right = (Judgement(each, body, trivial=trivial) for each in ("wrong", "pass"))

    assert reward_of(wrong, LARGER, "staged") == 0.2
    assert reward_of(wrong, LARGER, "staged", trivial=False) == 0.0
    assert reward_of(right, LARGER, "staged", trivial=False) == 1.0


def test_those_that_are_wrong_and_wrote_the_same_share_what_one_of_them_earns() -> None:
    found = [
        *[
            Judgement("wrong", body)
            for body in (" a + b }", "a+b }", " b + a }", " a + b /* ! */ }")
        ],
        *[Judgement("pass", " a.max(b) }")] * 2,
        Judgement("infrastructure", " a + b }"),
        Judgement("type", " a + c }"),
    ]
    rewards = [reward_of(each, LARGER, "staged") for each in found]

    assert rewards == [0.2, 0.2, 0.2, 0.2, 1.0, 1.0, None, 0.0]
    assert shared(rewards, found) == [0.05, 0.05, 0.2, 0.05, 1.0, 1.0, None, 0.0]


PROBLEM: Problem = LARGER
WRITTEN = [" a.max(b) }", " a }", " b", " todo!() }"]


@pytest.fixture(scope="module")
def reward() -> Iterator[CompilerReward]:
    with CompilerReward([PROBLEM], kind="staged") as found:
        yield found


def test_a_trainer_gets_a_number_for_each_completion(reward: CompilerReward) -> None:
    columns = {"id": ["larger"] * 4, "trainer_state": None}

    assert reward([PROBLEM.prompt] * 4, WRITTEN, **columns) == [1.0, 0.2, 0.0, 0.0]


def test_a_trainer_of_conversations_gets_them_too(reward: CompilerReward) -> None:
    prompts = [[{"role": "user", "content": PROBLEM.prompt}]] * 4
    completions = [[{"role": "assistant", "content": text}] for text in WRITTEN]

    assert reward(prompts, completions) == [1.0, 0.2, 0.0, 0.0]


def test_prompts_are_those_of_the_rows(reward: CompilerReward) -> None:
    assert reward.rows() == [{"prompt": PROBLEM.prompt, "id": "larger"}]
    with pytest.raises(InputError, match="is no problem's: pass prompts of rows"):
        reward(["fn other() {"], [" }"])
    with pytest.raises(InputError, match="no text and no conversation"):
        reward([PROBLEM.prompt], [7])


def test_only_what_may_be_trained_on_is_in_the_rows_of_a_set() -> None:
    with CompilerReward("own") as reward:
        names = {row["id"] for row in reward.rows()}

    assert 100 < len(names) < 239
