"""This file holds rewards: what a verdict earns, and a reward function as other people's trainers take them.

References
----------
.. [1] Y. Song et al., "Outcome-based Exploration for LLM Reasoning", 2025: batch exploration. arXiv:2509.06941
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from nanochat.errors import InputError
from nanochat.judge.judge import Judge, Judgement, Sample
from nanochat.problems.problem import Problem
from nanochat.problems.sets import load
from nanochat.rust.lexer import code_tokens
from nanochat.rust.signature import read_signature
from nanochat.rust.verdict import COMPILES, RUNS
from nanochat.sandbox.layers import Kind

__all__ = ["CompilerReward", "reward_of", "shared"]

_STAGED = 0.2


def reward_of(
    found: Judgement,
    problem: Problem,
    kind: Literal["pass", "staged", "compile"],
    *,
    trivial: bool = True,
) -> float | None:
    """What a sample earns: 1 for the whole of it, 0 for nothing; `None` if the machine failed, not the sample.

    Parameters
    ----------
    kind : {"pass", "staged", "compile"}
        "pass" pays for what is right. "staged" pays 0.2, too, for what returns on all inputs, so that a model learns
        which never is right; and "compile" 1 for what type-checks.
    trivial : bool
        Whether these two pay for what is wrong and no attempt: a literal, a parameter, what returns always the same, or
        what never names one of the parameters.
    """
    if found.verdict == "infrastructure":
        return None
    if found.verdict == "pass":
        return 1.0
    paid = {"staged": _STAGED if found.verdict in RUNS else 0.0}
    paid["compile"] = 1.0 if found.verdict in COMPILES else 0.0
    reward = paid.get(kind, 0.0)
    return reward if trivial or _attempts(found, problem) else 0.0


def _attempts(found: Judgement, problem: Problem) -> bool:
    if found.trivial:
        return False
    words = {token.text for token in code_tokens(found.body)}
    return all(each.name in words for each in read_signature(problem.prompt).parameters)


def shared(rewards: Sequence[float | None], judgements: Sequence[Judgement]) -> list[float | None]:
    """What samples of a problem earn, if those that are wrong and wrote the same share what one of them would earn.

    So a policy that writes one text for everything gains by writing another, which may be right, as with the penalty on
    repeated answers of [1]_.
    """
    texts = [" ".join(token.text for token in code_tokens(each.body)) for each in judgements]
    count = Counter(texts)
    return [
        reward if reward is None or each.verdict == "pass" else reward / count[text]
        for reward, each, text in zip(rewards, judgements, texts, strict=True)
    ]


class CompilerReward:
    """A reward function for any trainer that calls ``reward(prompts, completions, **columns)``, as TRL's do.

    Completions are compiled and run in a sandbox; see `nanochat.judge.judge.Judge`. Use it as a context, or close it.

    Parameters
    ----------
    problems : str or sequence of Problem
        A set, as `nanochat.problems.sets.load` takes them, of which those of the split ``train`` are used; or problems.
    kind, trivial
        See `reward_of`.
    sandbox : Kind
        What programs run in.
    seed : int
        Of the arguments with which they are tried.

    Examples
    --------
    With TRL, whose data set has a column ``prompt``::

        with CompilerReward("templates") as reward:
            trainer = GRPOTrainer(
                model=...,
                reward_funcs=reward,
                train_dataset=Dataset.from_list(reward.rows()),
            )
            trainer.train()
    """

    # By which TRL names the reward in its logs.
    __name__ = "compiler_reward"

    def __init__(
        self,
        problems: str | Sequence[Problem] = "templates",
        *,
        kind: Literal["pass", "staged", "compile"] = "pass",
        trivial: bool = True,
        sandbox: Kind = "auto",
        seed: int = 0,
    ) -> None:
        found = problems
        if isinstance(found, str):
            found = [each for each in load(found).problems if each.split == "train"]
        self._by_prompt = {problem.prompt: problem for problem in found}
        self._kind, self._trivial, self._seed = kind, trivial, seed
        self._judge = Judge(sandbox)

    def rows(self) -> list[dict[str, str]]:
        """The problems as rows of a data set: ``prompt`` and ``id``."""
        return [{"prompt": each.prompt, "id": each.id} for each in self._by_prompt.values()]

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: object
    ) -> list[float | None]:
        """What each completion earns.

        Parameters
        ----------
        prompts, completions : sequences of str, or of conversations
            A conversation is a list of ``{"role": ..., "content": ...}``, of which the last message counts.
        **columns
            Whatever else the trainer knows; not used.

        Raises
        ------
        InputError
            If a prompt is none of the problems'.
        """
        del columns
        samples = [
            Sample(self._problem(_text(prompt)), _text(completion))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        found = self._judge.judge(samples, seed=self._seed)
        return [
            reward_of(one, sample.problem, self._kind, trivial=self._trivial)
            for one, sample in zip(found, samples, strict=True)
        ]

    def close(self) -> None:
        """Close the judge."""
        self._judge.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _problem(self, prompt: str) -> Problem:
        problem = self._by_prompt.get(prompt)
        if problem is None:
            raise InputError(
                f"the prompt {prompt!r:.80} is no problem's: pass prompts of rows(), as they are"
            )
        return problem


def _text(of: object) -> str:
    if isinstance(of, str):
        return of
    if isinstance(of, Sequence) and of and isinstance(of[-1], Mapping):
        content = of[-1].get("content")
        if isinstance(content, str):
            return content
    raise InputError(f"{of!r:.80} is no text and no conversation: pass either")
