"""This file holds the texts of a session as they grow: what they begin with, what they have read, and their next token.

A text is a row of a state while it runs; waiting, it has none.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.draws import log_sum_exp, require_finite, top_logprobs
from nanochat.errors import InputError, NanochatError, NumericError
from nanochat.generation.drafts import NO_GUESS, Draft, Guess, Index
from nanochat.generation.engine import Choices
from nanochat.generation.mind import Mind
from nanochat.generation.options import FinishReason, Piece, TokenLogprob, Wanted, seeds_of
from nanochat.generation.sampling import Sampler, StopStrings
from nanochat.generation.voice import Voice
from nanochat.rows import RowState, Snapshot
from nanochat.text.calls import Calls
from nanochat.text.codec import TextCodec
from nanochat.text.thinking import Thoughts
from nanochat.text.tokenizer import StreamDecoder

__all__ = ["Prompt", "Text", "failed_piece", "new_texts"]

_LOGGER = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Prompt:
    """A prompt of one text or of several, which read it once."""

    ids: tuple[int, ...]
    # Texts that have not yet begun.
    unread: int
    salt: str = ""
    # Where the others begin, once the first has read it.
    snapshot: Snapshot[Any] | None = None
    logits: NDArray[np.float32] | None = None
    # How many log-probabilities it tells besides those of its tokens; None if not even these.
    num_alternatives: int | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    # Whether all of them are known, or nobody asks for them.
    is_told: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_told = self.num_alternatives is None

    @cached_property
    def index(self) -> Index:
        """Its tokens by those before them, once for all texts."""
        return Index.of(self.ids)

    def tell(self, logits: NDArray[np.float32]) -> None:
        """Note the log-probabilities of tokens, whose logits (T, V) follow those that were noted before."""
        assert self.num_alternatives is not None
        told = len(self.logprobs)
        for token, row in zip(self.ids[told + 1 : told + 1 + len(logits)], logits, strict=False):
            whole = log_sum_exp(row)
            found = top_logprobs(row, self.num_alternatives, normalizer=whole)
            top = tuple(zip(*(each.tolist() for each in found), strict=True))
            self.logprobs.append(TokenLogprob(float(row[token]) - whole, top))
        self.is_told = told + len(logits) == len(self.ids)

    def was_read(
        self, text: "Text", logits: NDArray[np.float32] | None, row: int, state: RowState[Any]
    ) -> None:
        """Note that a text has read it, and the logits after it, which are in a row of these."""
        # Of a prompt of one token, which nobody waits for, several have read it at once.
        if self.unread > 1 and not text.has_begun and self.snapshot is None:
            assert logits is not None
            self.snapshot, self.logits = state.snapshot(text.place), logits[row].copy()
        self.leave(text, state)

    def leave(self, text: "Text", state: RowState[Any]) -> None:
        """Count a text as begun, or as one that never will."""
        if text.has_begun:
            return
        text.has_begun = True
        self.unread -= 1
        if not self.unread:
            self.forget(state)

    def forget(self, state: RowState[Any]) -> None:
        """Give back what is kept for texts that have not begun; they read it again."""
        if self.snapshot is not None:
            state.drop(self.snapshot)
        self.snapshot = self.logits = None


@dataclass(eq=False, kw_only=True)
class Text:
    """One text as it grows."""

    row: int
    prompt: Prompt
    tokenizer: TextCodec
    sampler: Sampler
    stops: StopStrings
    tokens_left: int
    # How many log-probabilities it tells besides that of the chosen token; None if not even that.
    num_alternatives: int | None
    thoughts: Thoughts | None = None
    calls: Calls | None = None
    # Tokens that end it.
    stop_ids: frozenset[int] = frozenset()
    # Whether its tokens are guessed, and what from besides itself.
    is_drafted: bool = False
    predicted: tuple[int, ...] = ()
    # The prompt and what was chosen; of which the row `place` of the state has read some.
    ids: list[int] = field(init=False)
    place: int = -1
    read: int = 0
    has_begun: bool = False
    # How many tokens of its prompt it has not read, when it began.
    cached: int | None = None
    # Tokens that were guessed and those that stood; and both of what was predicted.
    drafted: int = 0
    accepted: int = 0
    predicted_drafted: int = 0
    predicted_accepted: int = 0
    # What extra heads say that comes next.
    ahead: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        self.ids = [*self.prompt.ids]
        self._draft: Draft | None = None
        self._decoder = StreamDecoder(self.tokenizer)
        self._mind = None if self.thoughts is None else Mind(self.thoughts, self.tokenizer)
        self._voice = Voice(self.stops, self.calls, self.tokenizer)
        self._bind()

    @property
    def needs_logits(self) -> bool:
        """Whether the logits that its next token is chosen from are wanted, too."""
        is_shared = self.prompt.unread > 1 and not self.has_begun
        return is_shared or bool(self.num_alternatives)

    def push(self, choices: Choices, row: int) -> list[Piece]:
        """Continue with the token that was chosen, or with those that end a thought in its place."""
        token = int(choices.tokens[row])
        logits = (
            None if choices.logits is None else choices.logits[row][: self.tokenizer.vocab_size]
        )
        if token < 0:
            assert logits is not None
            try:
                require_finite(logits)
            except NumericError as error:
                return [Piece(row=self.row, token=-1, text="", finish_reason="error", error=error)]
        if self.sampler.error is not None:
            return [self._ended_by_its_form(self.sampler.error)]
        if self._mind is not None and self._mind.is_over(token, self._decoder):
            return self._force(self._mind.ending())
        logprob: float | None = None
        alternatives: tuple[tuple[int, float], ...] = ()
        if self.num_alternatives is not None:
            logprob = float(choices.logprobs[row])
        if self.num_alternatives:
            assert logits is not None
            found = top_logprobs(
                logits, self.num_alternatives, normalizer=float(choices.normalizers[row])
            )
            alternatives = tuple(zip(*(each.tolist() for each in found), strict=True))
        return [self._continue(token, logprob=logprob, top_logprobs=alternatives)]

    def _ended_by_its_form(self, why: str) -> Piece:
        error = InputError(f"the text cannot go on within its form: {why:.300}")
        return Piece(row=self.row, token=-1, text="", finish_reason="error", error=error)

    def guess(self) -> Guess:
        """What it may say next."""
        matcher = self.sampler.matcher
        # Whether the form counts after a guessed token depends on whether that begins a thought, or ends one.
        is_unsure = matcher is not None and self._mind is not None and not self._mind.is_answering
        if not self.is_drafted or not self.has_begun or self.tokens_left < 2 or is_unsure:
            return NO_GUESS
        forced = () if matcher is None else matcher.forced()
        guess = self.draft.guess(self.tokens_left - 1, forced=forced, ahead=self.ahead)
        if not guess.tokens:
            return guess
        # What ends a text needs no guess: nothing is read after it.
        tokens = [*itertools.takewhile(lambda token: token not in self.stop_ids, guess.tokens)]
        return guess.first(len(tokens) if matcher is None else matcher.count(tokens))

    @property
    def draft(self) -> Draft:
        """What is guessed of it, made when it is first asked for."""
        if self._draft is None:
            self._draft = Draft(self.ids, self.prompt.index, self.predicted)
        return self._draft

    def take(self, choices: Choices, row: int, guess: Guess) -> tuple[list[Piece], int]:
        """Continue with the tokens that were chosen from a row on, one more than were guessed; how many of these stood.

        What was chosen after a guess that did not stand is of no use.
        """
        is_predicted = guess.source[0] == "predicted"
        self.drafted += len(guess.tokens)
        self.predicted_drafted += is_predicted * len(guess.tokens)
        pieces, stood = self.push(choices, row), 0
        for token in guess.tokens:
            # A token may end a text, or a thought, for which others come in its place.
            if len(pieces) != stood + 1 or pieces[-1].finish_reason or pieces[-1].token != token:
                break
            stood += 1
            self.accepted += 1
            self.predicted_accepted += is_predicted
            pieces += self.push(choices, row + stood)
        return pieces, stood

    def _force(self, tokens: Sequence[int]) -> list[Piece]:
        pieces: list[Piece] = []
        for token in tokens:
            pieces.append(self._continue(token, is_forced=True))
            if pieces[-1].finish_reason is not None:
                break
        return pieces

    def _continue(
        self,
        token: int,
        *,
        logprob: float | None = None,
        top_logprobs: tuple[tuple[int, float], ...] = (),
        is_forced: bool = False,
    ) -> Piece:
        is_first = len(self.ids) == len(self.prompt.ids)
        matcher = self.sampler.matcher
        if matcher is not None and self.sampler.is_constrained and not is_forced:
            matcher.push(token)
        self.sampler.push(token)
        self.ids.append(token)
        self.ahead = ()
        if self._draft is not None:
            self._draft.push()
        self.tokens_left -= 1
        found = self._decoder.push(token)
        if not self._is_thinking:
            found += self._voice.name_of(token)
        thought, said = self._told_apart(found, token)
        was_bound = self.sampler.is_constrained
        self._bind()
        if self.sampler.is_constrained and not was_bound and not self._holds(said):
            return self._ended_by_its_form(
                f"it begins with {said:.80}, in the token that ends a thought"
            )
        reason: FinishReason | None = None
        stopped_by: str | int | None = None
        text, calls = self._voice.push(said)
        stopped = self.stops.met is not None
        if stopped or token in self.stop_ids:
            reason, stopped_by = "stop", self.stops.met if stopped else token
        elif not self.tokens_left:
            reason = "length"
        if reason is not None:
            last, rest = self._told_apart(self._decoder.flush(), None)
            thought += last
            text += self._voice.end(rest)
        if reason == "stop" and self._voice.has_called:
            reason = "tool_calls"
        return Piece(
            row=self.row,
            token=token,
            text=text,
            reasoning=thought,
            calls=calls,
            finish_reason=reason,
            logprob=logprob,
            top_logprobs=top_logprobs,
            is_forced=is_forced,
            stopped_by=stopped_by,
            cached=self.cached or 0,
            drafted=self.drafted,
            accepted=self.accepted,
            predicted=(self.predicted_drafted, self.predicted_accepted),
            prompt_logprobs=tuple(self.prompt.logprobs) if is_first else (),
        )

    def end(self) -> Piece:
        """End a text of no tokens, whose prompt was read."""
        return Piece(
            row=self.row,
            token=-1,
            text="",
            finish_reason="length",
            prompt_logprobs=tuple(self.prompt.logprobs),
        )

    def _holds(self, said: str) -> bool:
        """Go on in the form with what stands in a token behind the end of a thought; whether it may stand there."""
        matcher = self.sampler.matcher
        assert matcher is not None
        # White space there is of the thought.
        tokens = self.tokenizer.encode(said) if said.strip() else []
        if matcher.count(tokens) < len(tokens):
            return False
        for token in tokens:
            matcher.push(token)
        return True

    def _bind(self) -> None:
        """Hold what comes to the form of the answer, unless it is a thought."""
        self.sampler.is_constrained = self.sampler.matcher is not None and not self._is_thinking

    @property
    def _is_thinking(self) -> bool:
        return self._mind is not None and self._mind.is_thinking

    def _told_apart(self, text: str, token: int | None) -> tuple[str, str]:
        """What of the thoughts, and what of the answer, a token releases; without one, all that is left."""
        return ("", text) if self._mind is None else self._mind.push(text, token)


def new_texts(
    prompts: Sequence[Sequence[int]],
    wanted: Wanted,
    tokenizer: TextCodec,
    *,
    first: int,
    max_tokens: int,
) -> list[Text]:
    """Texts of a call, `Wanted.n` after each prompt, that are numbered from the first on.

    Raises
    ------
    InputError
        If a seed is none, or a prediction holds what the tokenizer has not.
    """
    seeds = seeds_of(wanted.seed, len(prompts) * wanted.n)
    ends = () if wanted.ignore_eos else tokenizer.stop_ids
    stop_ids = frozenset([*ends, *wanted.stop_ids])
    predicted = wanted.prediction
    if isinstance(predicted, str):
        predicted = tuple(tokenizer.encode(predicted))
    if max(predicted, default=0) >= tokenizer.vocab_size:
        raise InputError(
            f"prediction holds token {max(predicted)}, which is not below the vocabulary of {tokenizer.vocab_size} "
            "tokens: pass ids of the model's tokenizer, or a string"
        )
    texts: list[Text] = []
    for ids in prompts:
        prompt = Prompt(
            ids=tuple(map(int, ids)),
            unread=wanted.n,
            salt=wanted.cache_salt,
            num_alternatives=wanted.prompt_logprobs,
        )
        for _ in range(wanted.n):
            sampler = Sampler(
                replace(wanted.sampling, seed=seeds[len(texts)]),
                prompt.ids,
                with_logprob=wanted.logprobs is not None,
                held_back=[*stop_ids],
                min_tokens=wanted.min_tokens,
                matcher=None if wanted.constraint is None else wanted.constraint.matcher(),
            )
            text = Text(
                row=first + len(texts),
                prompt=prompt,
                tokenizer=tokenizer,
                sampler=sampler,
                stop_ids=stop_ids,
                stops=StopStrings(wanted.stops),
                tokens_left=max_tokens,
                num_alternatives=wanted.logprobs,
                thoughts=wanted.thoughts,
                is_drafted=bool(wanted.draft),
                predicted=predicted,
                calls=wanted.calls,
            )
            texts.append(text)
    return texts


def failed_piece(text: Text, error: Exception) -> Piece:
    """The last piece of a text that a mistake of a library, or of ours, has ended; called while it is handled."""
    _LOGGER.exception("text %d failed; the others go on", text.row)
    why = NanochatError("this text could not go on: the log says why")
    why.__cause__ = error
    return Piece(row=text.row, token=-1, text="", finish_reason="error", error=why)
