"""This file holds the evaluation of a model: what is asked of it, and what is found of its texts and programs."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.errors import InputError
from nanochat.evaluation.completing import Drawing
from nanochat.evaluation.programs import SAMPLES, VERDICTS_FILE, Opening, draw, judge
from nanochat.evaluation.rates import Rates, rates
from nanochat.evaluation.texts import read_texts, score_texts
from nanochat.generation.scoring import Convention
from nanochat.judge.judge import Judge
from nanochat.lm import Model
from nanochat.problems.own import OWN_FILES, own_text
from nanochat.problems.problem import Split
from nanochat.problems.sets import ProblemSet, load
from nanochat.proof.golden import config_digest, tensor_digests, tokenizer_digest
from nanochat.sandbox.layers import Kind

__all__ = [
    "Programs",
    "evaluate_programs",
    "evaluate_texts",
    "judge_again",
    "model_record",
    "texts_of",
]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Programs:
    """What is asked of a model that writes programs.

    Parameters
    ----------
    problems : str
        See `nanochat.problems.sets.load`.
    levels, splits : sequence
        Which of the problems; all, if there are none of these.
    nontrivial : bool
        Whether those are left out whose right answer is a literal or a parameter.
    limit : int
        How many problems at most, chosen by a hash of their names; 0 for all.
    drawing : Drawing
        How samples are drawn.
    ks : sequence of int
        For which k pass@k is told.
    input_seed : int
        Of the arguments that programs are tried with.
    sandbox : Kind
        What programs run in.
    """

    problems: str = "own"
    levels: Sequence[int] = ()
    splits: Sequence[Split] = ()
    nontrivial: bool = False
    limit: int = 0
    drawing: Drawing = field(default_factory=Drawing)
    ks: Sequence[int] = (1,)
    input_seed: int = 0
    sandbox: Kind = "auto"

    def __post_init__(self) -> None:
        for k in self.ks:
            if not 1 <= k <= self.drawing.num_samples:
                raise InputError(
                    f"pass@{k} cannot be told from {self.drawing.num_samples} samples of a problem: take at least {k}, "
                    "or a smaller k"
                )

    def load(self) -> ProblemSet:
        """The problems.

        Raises
        ------
        InputError
            If none are left.
        """
        found = load(self.problems)
        selected = found.select(levels=self.levels, splits=self.splits, nontrivial=self.nontrivial)
        kept = [*selected.problems]
        if self.limit:
            kept.sort(key=lambda problem: hashlib.sha256(problem.id.encode()).digest())
            kept = sorted(kept[: self.limit], key=lambda problem: problem.id)
        if not kept:
            levels, splits = (
                {getattr(p, name) for p in found.problems} for name in ("level", "split")
            )
            raise InputError(
                f"{self.problems} has no problems of levels {[*self.levels]} and splits {[*self.splits]}: choose among "
                f"levels {sorted(levels)} and splits {', '.join(sorted(splits))}"
            )
        return ProblemSet(found.name, tuple(kept))


def model_record(model: Model) -> dict[str, object]:
    """What a result says of the model: its name, and a digest of all that it computes with."""
    digests = {
        "config": config_digest(model.config),
        "tokenizer": tokenizer_digest(model.tokenizer),
        **tensor_digests(model.weights),
    }
    text = json.dumps(digests, sort_keys=True)
    return {"name": model.name, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def texts_of(paths: Sequence[str]) -> dict[str, str]:
    """The texts that paths name: see `nanochat.evaluation.texts.read_texts`; "own" is the sources of our problems."""
    texts: dict[str, str] = {}
    if others := [path for path in paths if path != "own"]:
        texts |= read_texts(others)
    if len(others) < len(paths):
        texts |= {name: own_text(name) for name in OWN_FILES}
    return texts


def evaluate_texts(
    model: Model, texts: Mapping[str, str], convention: Convention, progress: Progress
) -> dict[str, object]:
    """Score texts by name."""
    found = score_texts(
        model,
        texts,
        convention=convention,
        progress=lambda done, total: progress("scoring texts", done, total),
    )
    return found.record()


def evaluate_programs(
    model: Model, asked: Programs, folder: Path, progress: Progress, opening: Opening | None = None
) -> dict[str, object]:
    """Let a model write programs and judge them; what has been done before in `folder` is not done again."""
    problems = asked.load()
    with Judge(asked.sandbox) as judged_by:
        draw(
            model.engine,
            model.tokenizer,
            problems,
            asked.drawing,
            folder / SAMPLES,
            model=model_record(model),
            opening=opening,
            progress=lambda done, total: progress("writing programs", done, total),
        )
        return _judged(
            folder / SAMPLES, folder / VERDICTS_FILE, problems, judged_by, asked, progress
        )


def judge_again(
    samples: Path, verdicts: Path, asked: Programs, progress: Progress
) -> dict[str, object]:
    """Judge samples without the model that wrote them, and write the verdicts into another file."""
    problems = asked.load()
    with Judge(asked.sandbox) as judged_by:
        return _judged(samples, verdicts, problems, judged_by, asked, progress)


def _judged(
    samples: Path,
    verdicts: Path,
    problems: ProblemSet,
    judged_by: Judge,
    asked: Programs,
    progress: Progress,
) -> dict[str, object]:
    found = judge(
        samples,
        verdicts,
        problems,
        judged_by,
        seed=asked.input_seed,
        progress=lambda done, total: progress("judging programs", done, total),
    )
    levels = sorted({problem.level for problem in problems.problems})
    level_of = {problem.id: problem.level for problem in problems.problems}
    return {
        "problems": problems.name,
        "problems_sha256": problems.identity,
        "input_seed": asked.input_seed,
        **judged_by.describe(),
        "varied": judged_by.varied,
        **_of(rates(found, ks=asked.ks)),
        "by_level": {
            str(level): _of(
                rates([one for one in found if level_of[one.problem] == level], ks=asked.ks)
            )
            for level in levels
        },
    }


def _of(found: Rates) -> dict[str, object]:
    return {
        "num_problems": found.num_problems,
        "num_samples": found.num_samples,
        "rates": {name: estimate._asdict() for name, estimate in found.rates.items()},
        "verdicts": dict(found.verdicts),
    }
