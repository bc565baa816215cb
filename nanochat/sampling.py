"""This file holds the choice of the next token: the settings, the sampler, and strings that stop a text.

A sampler sees float32 logits and nothing else, so it works alike for every backend. With the same seed it
also *picks* alike: the filters run in float64, ties go to the lower token id, and each token has a random
number of its own, which depends on the seed, the step and the token's id only.

Legend: V vocabulary, the number of tokens that the model knows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import InputError, NumericError, ShapeError

__all__ = ["Sampler", "Sampling", "StopStrings", "batch_samplers"]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the steps apply in the order of the fields.

    Parameters
    ----------
    repetition_penalty : float
        Logits of tokens that the sequence already holds are divided by this if positive and multiplied if
        negative [1]_; from 0.1 to 10, and 1.0 is off.
    temperature : float
        Logits are divided by this; 0.0 picks the most probable token and skips all that follows.
    top_k : int
        Keep this many of the most probable tokens; 0 is off.
    top_p : float
        Of those, keep the fewest most probable tokens whose probabilities sum to at least this [2]_;
        1.0 is off.
    min_p : float
        Of those, keep tokens at least this fraction as probable as the most probable one [3]_; 0.0 is off.
    seed : int
        The same seed gives the same tokens; from 0 to 2**63 - 1.

    References
    ----------
    .. [1] N. S. Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable
       Generation", 2019, section 4.1. arXiv:1909.05858
    .. [2] A. Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019, section 3.1.
       arXiv:1904.09751
    .. [3] M. Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs",
       2024, section 3. arXiv:2407.01082

    Examples
    --------
    >>> Sampling(temperature=0.7, top_k=40).top_p
    1.0
    """

    repetition_penalty: float = 1.0
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            # A number of NumPy becomes Python's.
            if isinstance(value, np.number):
                object.__setattr__(self, name, value.item())
        _check_number(
            "repetition_penalty", self.repetition_penalty, 0.1, 10.0, "1.0 switches it off"
        )
        _check_number("temperature", self.temperature, 0.0, 1e6, "0.0 is greedy, 0.8 is usual")
        _check_integer("top_k", self.top_k, 2**31 - 1, "0 switches it off")
        _check_number("top_p", self.top_p, 0.0, 1.0, "1.0 switches it off")
        if self.top_p == 0.0:
            raise InputError(
                "top_p=0.0 keeps no token; it must be above 0: pass temperature=0.0 for greedy choice"
            )
        _check_number("min_p", self.min_p, 0.0, 1.0, "0.0 switches it off")
        _check_integer("seed", self.seed, 2**63 - 1, "any integer of that range will do")


class Sampler:
    """The choice of tokens for one sequence; the repetition penalty counts those of `prompt_ids` as seen.

    Examples
    --------
    >>> sampler = Sampler(Sampling(temperature=0.0), prompt_ids=[2])
    >>> sampler.next(np.array([0.5, 3.0, 1.0], np.float32))
    1
    """

    def __init__(self, settings: Sampling, prompt_ids: Sequence[int] = ()) -> None:
        self.settings = settings
        # Each step draws V numbers, whatever the filters keep, so no choice shifts the draws of a later one.
        self._uniform = np.random.Generator(np.random.Philox(key=settings.seed))
        self._seen = {int(token) for token in prompt_ids}
        if self._seen and min(self._seen) < 0:
            raise InputError(
                f"prompt id {min(self._seen)} is negative; token ids start at 0: "
                "pass the ids that the model's own tokenizer returns"
            )
        self._highest_prompt_id = max(self._seen, default=-1)

    def next(self, logits: NDArray[np.float32]) -> int:
        """Return the chosen token's id, and count the token as seen; `logits`, (V,), are read, not changed."""
        self._check_logits(logits)

        scores = self._penalized(logits.astype(np.float64))
        if self.settings.temperature == 0.0:
            token = int(np.argmax(scores))
        else:
            ids, weights = _support(scores, self.settings)
            token = int(ids[_race(weights, self._uniform.random(scores.size)[ids])])

        self._seen.add(token)
        return token

    def _check_logits(self, logits: NDArray[np.float32]) -> None:
        if logits.ndim != 1 or logits.size == 0:
            raise ShapeError(
                f"logits have shape {logits.shape}, but a sampler chooses from one row of shape (V,): "
                "pass logits[row] and use one sampler per row"
            )
        finite = np.isfinite(logits)
        if not finite.all():
            token = int(np.argmin(finite))
            raise NumericError(
                f"the logit of token {token} is {logits[token]}, but logits must be finite: "
                "look for an overflow in the weights or in the backend that computed them"
            )
        if self._highest_prompt_id >= logits.size:
            raise InputError(
                f"prompt id {self._highest_prompt_id} is not below the vocabulary of {logits.size} tokens: "
                "pass the ids that the model's own tokenizer returns"
            )

    def _penalized(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        penalty = self.settings.repetition_penalty
        if penalty != 1.0:
            ids = np.fromiter(self._seen, dtype=np.intp, count=len(self._seen))
            seen = scores[ids]
            scores[ids] = np.where(seen > 0.0, seen / penalty, seen * penalty)
        return scores


def batch_samplers(settings: Sampling, prompts: Sequence[Sequence[int]]) -> list[Sampler]:
    """Return one sampler per row of a batch; row i draws with ``settings.seed + i``.

    A row's tokens therefore do not depend on the rows beside it.

    Examples
    --------
    >>> [sampler.settings.seed for sampler in batch_samplers(Sampling(seed=5), [[1], [2, 3]])]
    [5, 6]
    """
    return [
        Sampler(replace(settings, seed=settings.seed + row), prompt_ids)
        for row, prompt_ids in enumerate(prompts)
    ]


class StopStrings:
    """The end of a growing text at the first of some strings.

    Text that may be the start of a stop string is held back until the next piece decides, so what has been
    emitted never has to be taken back. The stop string that is complete first wins; it is not emitted.

    Examples
    --------
    >>> stops = StopStrings(["</s>"])
    >>> stops.push("one <"), stops.push("two </"), stops.push("s> three")
    (('one ', False), ('<two ', False), ('', True))
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise InputError(
                f"stops={stops!r} is one string, but a sequence of strings is needed: pass [{stops!r}]"
            )
        if "" in stops:
            raise InputError("a stop string is empty and would stop every text at once: drop it")
        self._stops = tuple(stops)
        self._held = ""
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown by now, and whether a stop string has been met, after which none may."""
        if self._stopped:
            return "", True

        text = self._held + text
        matches = [(text.find(stop) + len(stop), stop) for stop in self._stops if stop in text]
        if matches:
            # Of two that end at the same character the longer one starts earlier and wins.
            end, stop = min(matches, key=lambda match: (match[0], -len(match[1])))
            start = end - len(stop)
            self._held = ""
            self._stopped = True
            return text[:start], True

        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """Return the text that was held back; call it when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _check_number(name: str, value: float, low: float, high: float, fix: str) -> None:
    # A NaN fails the comparison, whichever way it is written.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name}={value!r} is not a number from {low:g} to {high:g}: {fix}")


def _check_integer(name: str, value: int, high: int, fix: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise InputError(f"{name}={value!r} is not an integer from 0 to {high}: {fix}")


def _support(
    scores: NDArray[np.float64], settings: Sampling
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return the ids that survive the filters, ascending, and their unnormalized probabilities."""
    ids = np.arange(scores.size)
    if 0 < settings.top_k < scores.size:
        ids = _most_probable(scores, settings.top_k)

    # A tiny temperature sends all but the largest to minus infinity, hence to probability 0.
    with np.errstate(over="ignore"):
        weights = np.exp((scores[ids] - scores[ids].max()) / settings.temperature)

    if settings.top_p < 1.0:
        kept = _nucleus(weights, settings.top_p)
        ids, weights = ids[kept], weights[kept]
    # The largest weight is exp(0) = 1, so every filter keeps it. A weight below 1e-300 never wins, and a
    # race would overflow on it: the longest time is 53 * log(2).
    kept = np.flatnonzero(weights >= max(settings.min_p, 1e-300))
    return ids[kept], weights[kept]


def _most_probable(scores: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Return the indices of the `count` largest scores, ascending; of equal ones, the first."""
    least = np.partition(scores, scores.size - count)[scores.size - count]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: count - above.size]
    return np.sort(np.concatenate([above, equal]))


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Return the indices of the fewest largest weights that hold `top_p` of the sum, ascending."""
    total = weights.sum()
    # Sorting V weights is the slowest step. The weights below this bound sum to less than 1 - top_p of
    # the total, hence the nucleus lies among the others: often a hundred of 50,000.
    candidates = np.flatnonzero(weights >= (1.0 - top_p) * total / weights.size)
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1
    return np.sort(order[:count])


def _race(weights: NDArray[np.float64], uniform: NDArray[np.float64]) -> int:
    """Return index i with probability ``weights[i] / sum(weights)``.

    Token i arrives after an exponential time of rate ``weights[i]``, and the first one wins: the Gumbel-max
    trick [1]_ without its second logarithm. If the logits of 4,096 tokens differ by 1e-5 between two backends,
    the picks differ in fewer than 1 step of 50,000. With a single uniform number and the running sum of the
    weights it is 1 of 2,000, because the differences add up along the sum.

    References
    ----------
    .. [1] C. J. Maddison et al., "A* Sampling", 2014, section 2. arXiv:1411.0030
    """
    return int(np.argmin(-np.log1p(-uniform) / weights))


def _overlap(text: str, stop: str) -> int:
    """Return the length in characters of the longest end of `text` that `stop` starts with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
