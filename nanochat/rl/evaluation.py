"""This file holds the evaluation of a policy in training, on problems that it learns from and on others."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanochat.errors import TrainingError
from nanochat.evaluation.completing import Completion, Drawing, Request, complete
from nanochat.evaluation.evaluate import Programs
from nanochat.evaluation.rates import Judged, Rates, rates
from nanochat.generation.engine import Runner
from nanochat.judge.judge import Judge, Judgement, Sample, require_judged
from nanochat.problems.problem import Problem
from nanochat.rl.recipe import Recipe, Reward
from nanochat.rl.rewards import reward_of
from nanochat.rust.lexer import code_tokens
from nanochat.rust.signature import read_signature
from nanochat.text.codec import TextCodec

__all__ = ["HELD_OUT_PASSES", "evaluate", "held_out", "require_variety"]

# What a run's best snapshot is the best of.
HELD_OUT_PASSES = "held_out_passes"
# Whatever the run's own seed is, so that runs are compared on the same draws.
_SEED = 0
_MOST_TEXTS = 10
# Unlike families of which a text must have been rewarded before its share says anything, and samples.
_FEWEST_FAMILIES, _FEWEST_SAMPLES = 3, 24
_RATES = ("compiles", "runs", "passes", "trivial")


@dataclass(frozen=True)
class _Answer:
    problem: Problem
    completion: Completion
    found: Judgement


def held_out(recipe: Recipe) -> dict[str, tuple[Problem, ...]]:
    """The problems of each split that a run is evaluated on.

    Raises
    ------
    InputError
        If a split has none.
    """
    asked = recipe.evaluation
    return {
        split: Programs(
            problems=asked.source or recipe.problems.source,
            levels=recipe.problems.levels,
            splits=(split,),
            nontrivial=recipe.problems.nontrivial,
            limit=asked.problems,
        )
        .load()
        .problems
        for split in asked.splits
    }


def evaluate(
    engine: Runner[Any],
    tokenizer: TextCodec,
    problems: Mapping[str, Sequence[Problem]],
    judge: Judge,
    recipe: Recipe,
    *,
    watch: Callable[[int, int], None],
    check: Callable[[], None],
) -> dict[str, object]:
    """What the log says of a policy.

    Of each split the shares of samples that *compiles*, *runs*, *passes* and *trivial* count (see
    `nanochat.evaluation.rates`), the share of problems *solved* by one of their samples, and of the likeliest texts
    *greedy_passes* and how many are *greedy_distinct*; *passes_interval* is what 95 % of resampled problems say.
    *held_out_passes* is the mean of the splits that are not learnt from, or of all. *rewarded_texts* are the ten that
    earn the most.

    Parameters
    ----------
    watch : callable
        Is told how many samples of how many are drawn.
    check : callable
        Is called between the parts of it, and may raise.
    """
    asked, rollout = recipe.evaluation, recipe.rollout
    drawn = Drawing(
        num_samples=asked.samples,
        temperature=rollout.temperature,
        top_p=1.0,
        max_tokens=rollout.max_tokens,
        seed=_SEED,
    )
    greedy = Drawing(num_samples=1, temperature=0.0, top_p=1.0, max_tokens=rollout.max_tokens)
    total = sum(map(len, problems.values())) * (asked.samples + 1)
    done = 0
    watch(done, total)
    answers: dict[tuple[str, bool], list[_Answer]] = {}
    for split, members in problems.items():
        for drawing in (drawn, greedy):
            written = _write(engine, tokenizer, members, drawing)
            check()
            answers[split, drawing is greedy] = _judge(judge, members, written)
            check()
            done += len(written)
            watch(done, total)
    found: dict[str, object] = {}
    tables: dict[str, dict[str, float]] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for (split, is_greedy), given in answers.items():
        measured = _rates(given)
        if is_greedy:
            tables.setdefault("greedy_passes", {})[split] = measured.rates["passes"].value
            texts = {_shape(each) for each in given if each.found.verdict != "open"}
            tables.setdefault("greedy_distinct", {})[split] = len(texts)
            continue
        solved = {each.problem.id for each in given if each.found.verdict == "pass"}
        tables.setdefault("solved", {})[split] = len(solved) / len(problems[split])
        intervals[split] = measured.rates["passes"][1:]
        for name in _RATES:
            value = measured.rates[name].value
            # A share of none is no number, for which JSON has no word.
            if not math.isnan(value):
                tables.setdefault(name, {})[split] = value
    passes = tables["passes"]
    unseen = [value for split, value in passes.items() if split != "train"] or [*passes.values()]
    found[HELD_OUT_PASSES] = sum(unseen) / len(unseen)
    every = [each for (_, is_greedy), given in answers.items() if not is_greedy for each in given]
    found |= {
        **tables,
        "passes_interval": intervals,
        "rewarded_texts": _most_rewarded(every, recipe.reward),
    }
    first = next(given for (_, is_greedy), given in answers.items() if is_greedy)[0]
    found["sample"] = first.problem.prompt + first.completion.text
    return found


def require_variety(values: Mapping[str, object], reward: Reward, step: int) -> None:
    """Refuse to go on when one text earns nearly all.

    Raises
    ------
    TrainingError
        If it does, in several unlike families.
    """
    texts: Any = values["rewarded_texts"]
    if not texts:
        return
    text, count, families, total = texts[0]
    if families < _FEWEST_FAMILIES or total < _FEWEST_SAMPLES or count <= reward.collapse * total:
        return
    raise TrainingError(
        f"{text!r:.80} is {count} of {total} rewarded samples at step {step}, in {families} unlike families: the "
        "policy has collapsed to it; set reward.kind=pass, reward.trivial=false, a lower rate or policy.entropy, or "
        "reward.collapse=1 to go on all the same"
    )


def _write(
    engine: Runner[Any], tokenizer: TextCodec, problems: Sequence[Problem], drawing: Drawing
) -> list[Completion]:
    requests = [Request(p.id, p.prompt, range(drawing.num_samples)) for p in problems]
    written = [*complete(engine, tokenizer, requests, drawing)]
    return sorted(written, key=lambda each: (each.id, each.sample))


def _judge(
    judge: Judge, problems: Sequence[Problem], written: Sequence[Completion]
) -> list[_Answer]:
    by_id = {problem.id: problem for problem in problems}
    found = judge.judge([Sample(by_id[each.id], each.text) for each in written], seed=_SEED)
    require_judged(found, "resume on a quieter machine")
    return [_Answer(by_id[w.id], w, one) for w, one in zip(written, found, strict=True)]


def _rates(answers: Sequence[_Answer]) -> Rates:
    return rates(
        [
            Judged(a.problem.id, a.completion.sample, a.found.verdict, a.found.trivial)
            for a in answers
        ]
    )


def _most_rewarded(answers: Sequence[_Answer], reward: Reward) -> list[list[object]]:
    """Texts that earn something: each with its samples, their families, and the samples of all of them."""
    kind: Literal["pass", "staged", "compile"] = "pass" if reward.kind == "teacher" else reward.kind
    count: Counter[str] = Counter()
    families: dict[str, set[str]] = {}
    for each in answers:
        if reward_of(each.found, each.problem, kind, trivial=reward.trivial):
            shape = _shape(each)
            count[shape] += 1
            families.setdefault(shape, set()).add(each.problem.family)
    total = count.total()
    return [[text, n, len(families[text]), total] for text, n in count.most_common(_MOST_TEXTS)]


def _shape(answer: _Answer) -> str:
    """A body, with its parameters by their places: the same text for other names is the same."""
    parameters = read_signature(answer.problem.prompt).parameters
    names = {parameter.name: f"${place}" for place, parameter in enumerate(parameters)}
    body = code_tokens(answer.found.body.removesuffix("}"))
    return " ".join(names.get(token.text, token.text) for token in body)
