"""This file holds the choice of the next token: the settings, the sampler of a row, and strings that stop a text.

A sampler knows what its sequence has held so far, and says what the next draw depends on; the draw itself is an
operation of backends, which `nanochat.draws` defines.

Legend: V vocabulary, the number of tokens that may be drawn.
"""

import secrets
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from nanochat.draws import Draws, require_finite, sample
from nanochat.errors import InputError, ShapeError
from nanochat.generation.constraint import Matcher
from nanochat.text.held import overlap

__all__ = ["SEEDS", "Sampler", "Sampling", "StopStrings", "batch_samplers", "fill_draws"]

# Seeds have 63 bits, since kernels keep them in int64.
SEEDS = 2**63
# A logit plus this is the smallest that there is, which has probability 0 beside any other.
_NEVER = -np.finfo(np.float32).max
# What of a sampler changes with its tokens.
_MOVING = {"position", "_places", "_counts", "_ids", "_factors", "_addends", "_highest"}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; the steps apply in the order of the fields.

    Parameters
    ----------
    repetition_penalty : float
        Logits of tokens that the sequence already holds are divided by this if positive and multiplied if
        negative [1]_; from 0.1 to 10, and 1.0 is off.
    presence_penalty, frequency_penalty : float
        Subtracted from the logits of tokens that have been generated: the one once, the other as often as the token
        was [2]_; from -2 to 2, and 0.0 is off.
    logit_bias : mapping of int to float
        What is added to the logits of these token ids, from -100 to 100 [2]_.
    temperature : float
        Logits are divided by this; 0.0 picks the most probable token and skips all that follows.
    top_k : int
        Keep this many of the most probable tokens; 0 is off.
    top_p : float
        Of those, keep the fewest most probable tokens whose probabilities sum to at least this [3]_;
        1.0 is off.
    min_p : float
        Of those, keep tokens at least this fraction as probable as the most probable one [4]_; 0.0 is off.
    seed : int, optional
        The same seed gives the same tokens; from 0 to 2**63 - 1. None draws one, which the attribute then holds.

    References
    ----------
    .. [1] N. S. Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable
       Generation", 2019, section 4.1. arXiv:1909.05858
    .. [2] OpenAI, API reference, "Create chat completion". vLLM computes the same.
    .. [3] A. Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019, section 3.1.
       arXiv:1904.09751
    .. [4] M. Nguyen et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM Outputs",
       2024, section 3. arXiv:2407.01082

    Examples
    --------
    >>> Sampling(temperature=0.7, top_k=40).top_p
    1.0
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # A mapping has no hash.
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            # A number of NumPy becomes Python's.
            if isinstance(value, np.number):
                object.__setattr__(self, name, value.item())
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(SEEDS))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        _check_number(
            "repetition_penalty", self.repetition_penalty, 0.1, 10.0, "1.0 switches it off"
        )
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0, "0.0 switches it off")
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "0.0 switches it off")
        _check_number("temperature", self.temperature, 0.0, 1e6, "0.0 is greedy, 0.8 is usual")
        _check_integer("top_k", self.top_k, 2**31 - 1, "0 switches it off")
        _check_number("top_p", self.top_p, 0.0, 1.0, "1.0 switches it off")
        if self.top_p == 0.0:
            raise InputError(
                "top_p=0.0 keeps no token; it must be above 0: pass temperature=0.0 for greedy choice"
            )
        _check_number("min_p", self.min_p, 0.0, 1.0, "0.0 switches it off")
        _check_integer("seed", self.seed, SEEDS - 1, "any integer of that range will do")


class Sampler:
    """What the choice of tokens depends on, for one sequence.

    The repetition penalty counts the tokens of `prompt_ids` as seen; the other penalties count those that `push` was
    told of. A sampler without penalties keeps no record of tokens.

    Parameters
    ----------
    with_logprob : bool
        Whether draws shall give the log-probability of the token, too.
    held_back : sequence of int
        Tokens that cannot be drawn before `min_tokens` others were.
    matcher : Matcher, optional
        Which tokens may be drawn, where `is_constrained`.

    Attributes
    ----------
    seed, position : int
        What the random numbers of the next draw depend on; the position is the number of tokens that were pushed.

    Examples
    --------
    >>> sampler = Sampler(Sampling(temperature=0.0), prompt_ids=[2])
    >>> sampler.next(np.array([0.5, 3.0, 1.0], np.float32))
    1
    """

    def __init__(
        self,
        settings: Sampling,
        prompt_ids: Sequence[int] = (),
        *,
        with_logprob: bool = False,
        held_back: Sequence[int] = (),
        min_tokens: int = 0,
        matcher: Matcher | None = None,
    ) -> None:
        assert settings.seed is not None
        self.settings = settings
        self._held_back = frozenset(held_back if min_tokens else ())
        self._min_tokens = min_tokens
        self.matcher = matcher
        self.is_constrained = matcher is not None
        self.with_logprob = with_logprob
        self.seed: int = settings.seed
        self.position = 0
        self._draws: Draws | None = None
        # A place that was guessed at, and why no token can be drawn there.
        self._failed: tuple[int, str] | None = None
        # By token id: its place in the arrays of adjustments.
        self._places: dict[int, int] = {}
        self._counts: dict[int, int] = {}
        self._ids = np.zeros(8, np.int64)
        self._factors = np.zeros(8, np.float32)
        self._addends = np.zeros(8, np.float32)
        _require_not_negative("prompt id", int(min(prompt_ids, default=0)))
        # What a vocabulary must be larger than: a backend's kernel checks no id.
        self._highest = {
            "prompt id": int(max(prompt_ids, default=-1)),
            "logit_bias id": max(settings.logit_bias, default=-1),
            "pushed id": -1,
            "stop_token_ids id": max(held_back, default=-1),
        }
        for token in {*settings.logit_bias, *self._held_back}:
            self._adjust(token)
        if settings.repetition_penalty != 1.0:
            for token in {int(token) for token in prompt_ids}:
                self._see(token)

    def next(self, logits: NDArray[np.float32]) -> int:
        """Return the chosen token's id, and count the token; `logits`, (V,), are read, not changed.

        The draw is NumPy's. `Ops.sample` of a backend chooses the same for all rows of a batch at once.
        """
        if logits.ndim != 1 or logits.size == 0:
            raise ShapeError(
                f"logits have shape {logits.shape}, but a sampler chooses from one row of shape (V,): "
                "pass logits[row] and use one sampler per row"
            )
        if self._draws is None or self._draws.vocab_size != logits.size:
            self._draws = Draws.greedy(1, vocab_size=logits.size)
        require_finite(logits)
        self.fill(self._draws, 0)
        token = int(sample(logits[None], self._draws).tokens[0])
        self.push(token)
        return token

    def fill(self, draws: Draws, row: int, guessed: Sequence[int] = ()) -> None:
        """Write into a row of `draws` what the next token depends on.

        And into the row after it what the one depends on that follows the first guessed token, and so on.

        Raises
        ------
        InputError
            If an id of the prompt, of `logit_bias` or of a pushed token is outside the vocabulary.
        """
        self._write(draws, row)
        if not guessed:
            return
        kept = {name: copy(value) for name, value in vars(self).items() if name in _MOVING}
        matcher = self.matcher
        try:
            if matcher is not None and self.is_constrained:
                self.matcher = matcher.copy()
            for number, token in enumerate(guessed, start=1):
                if self.matcher is not None and self.is_constrained:
                    self.matcher.push(token)
                self.push(token)
                self._write(draws, row + number)
                if self.error is not None:
                    kept["_failed"] = (self.position, self.error)
                    break
        finally:
            vars(self).update(kept)
            self.matcher = matcher

    @property
    def error(self) -> str | None:
        """Why no token can be drawn within the form, if that is so: the last `fill` has found out."""
        if self._failed is not None and self._failed[0] == self.position:
            return self._failed[1]
        return None if self.matcher is None else self.matcher.error

    def fill_later(self, draws: Draws, row: int, later: int) -> None:
        """Write what a token depends on that comes so many places after the next, as far as it is known.

        With the random numbers of its place, a guess is more often what is chosen there.
        """
        self._write_settings(draws, row, self.position + later)

    def _write(self, draws: Draws, row: int) -> None:
        for what, token in self._highest.items():
            if token >= draws.vocab_size:
                raise InputError(
                    f"{what} {token} is not below the vocabulary of {draws.vocab_size} tokens: "
                    "pass the ids that the model's own tokenizer returns"
                )
        count = len(self._places)
        draws.num_adjusted[row] = count
        draws.adjusted[row, :count] = self._ids[:count]
        draws.factors[row, :count] = self._factors[:count]
        draws.addends[row, :count] = self._addends[:count]
        draws.masked[row] = self.is_constrained
        if self.is_constrained:
            assert self.matcher is not None
            self.matcher.fill(draws.allowed[row])
            if self.position < self._min_tokens:
                self._hold_back_within(draws, row)
        self._write_settings(draws, row, self.position)
        draws.with_logprob[row] = self.with_logprob

    def _hold_back_within(self, draws: Draws, row: int) -> None:
        """Let only what goes on be drawn within a form, unless it allows nothing but the end."""
        allowed, whole = draws.allowed[row], draws.allowed[row].copy()
        for token in self._held_back:
            allowed[token >> 5] &= ~np.uint32(1 << (token & 31))
        if not allowed.any():
            allowed[:] = whole
            for token in self._held_back:
                draws.addends[row, self._places[token]] = 0.0

    def _write_settings(self, draws: Draws, row: int, position: int) -> None:
        draws.temperature[row] = self.settings.temperature
        draws.top_k[row] = self.settings.top_k
        draws.top_p[row] = self.settings.top_p
        draws.min_p[row] = self.settings.min_p
        draws.seed[row] = self.seed
        draws.position[row] = position

    def push(self, token: int) -> None:
        """Count a token that continues the sequence: the one that was drawn, or another that took its place."""
        _require_not_negative("pushed id", token)
        self._highest["pushed id"] = max(token, self._highest["pushed id"])
        self.position += 1
        if self.position == self._min_tokens:
            for held in self._held_back:
                self._adjust(held)
        settings = self.settings
        if settings.repetition_penalty != 1.0:
            self._see(token)
        if settings.presence_penalty or settings.frequency_penalty:
            self._counts[token] = self._counts.get(token, 0) + 1
            self._adjust(token)

    def _see(self, token: int) -> None:
        # In two steps: the first may replace the array.
        place = self._adjust(token)
        self._factors[place] = self.settings.repetition_penalty

    def _adjust(self, token: int) -> int:
        """Compute what is added to the logit of a token; its place."""
        settings = self.settings
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids, self._factors, self._addends = (
                np.concatenate([array, np.zeros_like(array)])
                for array in (self._ids, self._factors, self._addends)
            )
        if not self._factors[place]:
            self._ids[place], self._factors[place] = token, 1.0
        bias, count = settings.logit_bias.get(token, 0.0), self._counts.get(token, 0)
        penalty = settings.presence_penalty * (count > 0) + settings.frequency_penalty * count
        self._addends[place] = bias - penalty
        if self.position < self._min_tokens and token in self._held_back:
            self._addends[place] = _NEVER
        return place


def batch_samplers(settings: Sampling, prompts: Sequence[Sequence[int]]) -> list[Sampler]:
    """Return one sampler per row of a batch; row i draws with ``settings.seed + i``, modulo 2**63.

    A row's tokens therefore do not depend on the rows beside it.

    Examples
    --------
    >>> [sampler.settings.seed for sampler in batch_samplers(Sampling(seed=5), [[1], [2, 3]])]
    [5, 6]
    """
    assert settings.seed is not None
    return [
        Sampler(replace(settings, seed=(settings.seed + row) % SEEDS), prompt_ids)
        for row, prompt_ids in enumerate(prompts)
    ]


def fill_draws(
    draws: Draws,
    samplers: Sequence[Sampler],
    *,
    guessed: Sequence[Sequence[int]] = (),
    places: Sequence[int] = (),
) -> None:
    """Write into rows of `draws` what the next tokens of `samplers` depend on.

    The other rows take their largest logit, which costs least.

    Parameters
    ----------
    guessed : sequence of sequences of int, optional
        Tokens after which each sampler draws, too; see `Sampler.fill`.
    places : sequence of int, optional
        The row of each sampler's first draw; by default they follow one another.

    Examples
    --------
    >>> draws = Draws.greedy(4, vocab_size=9)
    >>> fill_draws(draws, batch_samplers(Sampling(temperature=0.5), [[1], [2, 3]]))
    >>> draws.temperature.tolist()
    [0.5, 0.5, 0.0, 0.0]
    """
    draws.temperature[:] = 0.0
    draws.num_adjusted[:] = 0
    draws.masked[:] = False
    draws.with_logprob[:] = False
    row = 0
    for number, sampler in enumerate(samplers):
        tokens = guessed[number] if guessed else ()
        row = places[number] if places else row
        sampler.fill(draws, row, tokens)
        row += 1 + len(tokens)


class StopStrings:
    """The end of a growing text at the first of some strings.

    Text that may be the start of a stop string is held back until the next piece decides, so what has been
    emitted never has to be taken back. The stop string that is complete first wins; it is not emitted.

    Examples
    --------
    >>> stops = StopStrings(["</s>"])
    >>> stops.push("one <"), stops.push("two </"), stops.push("s> three")
    (('one ', False), ('<two ', False), ('', True))
    >>> stops.met
    '</s>'
    """

    # The string that has ended the text.
    met: str | None = None

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise InputError(
                f"stops={stops!r} is one string, but a sequence of strings is needed: pass [{stops!r}]"
            )
        if "" in stops:
            raise InputError(
                "stop holds an empty string, which would stop every text at once: drop it"
            )
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that may be shown by now, and whether a stop string has been met, after which none may."""
        if self.met is not None:
            return "", True

        text = self._held + text
        matches = [(text.find(stop) + len(stop), stop) for stop in self._stops if stop in text]
        if matches:
            # Of two that end at the same character the longer one starts earlier and wins.
            end, stop = min(matches, key=lambda match: (match[0], -len(match[1])))
            start = end - len(stop)
            self._held = ""
            self.met = stop
            return text[:start], True

        held = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """Return the text that was held back; call it when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _require_not_negative(what: str, token: int) -> None:
    if token < 0:
        raise InputError(
            f"{what} {token} is negative; token ids start at 0: "
            "pass the ids that the model's own tokenizer returns"
        )


def _check_number(name: str, value: float, low: float, high: float, fix: str) -> None:
    # A NaN fails the comparison, whichever way it is written.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InputError(f"{name}={value!r} is not a number from {low:g} to {high:g}: {fix}")


def _check_integer(name: str, value: object, high: int, fix: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise InputError(f"{name}={value!r} is not an integer from 0 to {high}: {fix}")


def _checked_bias(bias: Mapping[int, float]) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise InputError(
            f"logit_bias={bias!r:.80} is no mapping of token ids to numbers: pass for example {{42: -100.0}}"
        )
    checked: dict[int, float] = {}
    for token, value in bias.items():
        number = value.item() if isinstance(value, np.number) else value
        _check_integer(
            "a token id of logit_bias",
            int(token) if isinstance(token, np.integer) else token,
            2**31 - 1,
            "pass ids of the model's own tokenizer",
        )
        _check_number(
            f"logit_bias[{token}]", number, -100.0, 100.0, "-100 bans a token, 100 forces it"
        )
        checked[int(token)] = number
    return checked
