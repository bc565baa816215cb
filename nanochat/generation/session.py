"""This file holds generation: prompts are read, tokens are chosen one after the other, and text comes out in pieces.

A `Session` holds the texts that are being written, each a row of one state: they begin and end at different times, and
none changes another's tokens. `generate` is a session for some prompts that begin together.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from nanochat.draws import Draws
from nanochat.errors import ContextLengthError, InputError, MemoryShortageError
from nanochat.generation.cache import PromptCache
from nanochat.generation.drafter import Drafter
from nanochat.generation.drafts import Guess
from nanochat.generation.engine import PREFILL_CHUNK, Choices, Runner, check_ids
from nanochat.generation.options import (
    GenerationOptions,
    Piece,
    read_options,
    tokens_after,
)
from nanochat.generation.pace import Pace
from nanochat.generation.places import Load, Places
from nanochat.generation.prefixes import COPIES, Beginning, Prefixes
from nanochat.generation.sampling import Sampler
from nanochat.generation.texts import Text, failed_piece, new_texts
from nanochat.rows import PAGE, RowState, num_pages, pages_of_rows
from nanochat.text.codec import TextCodec

__all__ = ["Session", "generate"]

State = TypeVar("State", bound=RowState[Any])

# Tokens of a prompt whose logits are computed at once, which take as much memory as the vocabulary is large.
_TOLD_AT_ONCE = 64
# Texts of one call that are written at the same time: more of them would not be written faster.
_MOST_ROWS = 64


class Session(Generic[State]):
    """Texts that are written at the same time by one model; they come and go without waiting for each other.

    Parameters
    ----------
    rows : int
        Texts that are written at the same time; others wait.
    capacity : int, optional
        Most tokens of a prompt and its text; by default the model's context.
    pages : int, optional
        Pages of all rows, see `nanochat.rows.RowState`. If they run out, the youngest text is put aside, and is read
        again later: it stays the same.
    prompt_tokens : int
        Most tokens of prompts that are read in one step, beside the texts that are being written.
    stretch : float, optional
        How many times as long such a step may take for them, see `nanochat.generation.pace.Pace`.
    prefix_cache : bool
        Keep what was read, in pages that no text needs, so that a prompt that begins like an earlier one is read from
        there on: a conversation reads only what is new. That changes the time that a text takes, and nothing else.
    copies : int, optional
        Most copies that are kept of what rows remember besides keys and values, of which each is as large as that of a
        row; by default two for each row.
    heads : bool
        Let extra heads of the model read all that it reads, so that they can guess for texts.

    Raises
    ------
    InputError
        If the model has no heads.
    """

    def __init__(
        self,
        runner: Runner[State],
        tokenizer: TextCodec,
        *,
        rows: int,
        capacity: int | None = None,
        pages: int | None = None,
        prompt_tokens: int = PREFILL_CHUNK,
        stretch: float | None = None,
        prefix_cache: bool = True,
        copies: int | None = None,
        heads: bool = False,
    ) -> None:
        if heads and runner.config.num_ahead and not runner.num_ahead:
            raise InputError(
                f"the extra heads of this model are {runner.config.ahead_kind}, and guess nothing: pass draft=True, or "
                "drop --draft-heads"
            )
        if heads and not runner.num_ahead:
            raise InputError(
                "this model has no extra heads (num_ahead=0) that could guess: pass draft=True, or drop --draft-heads"
            )
        self.runner = runner
        self._has_heads = heads
        self.tokenizer = tokenizer
        self.capacity = runner.config.context_length if capacity is None else capacity
        self._pace = Pace(prompt_tokens, stretch=stretch)
        if pages is None:
            pages = pages_of_rows(rows, self.capacity)
        state = runner.new_state(rows=rows, capacity=self.capacity, pages=pages, ahead=heads)
        copies = COPIES * rows if copies is None else copies
        prefixes = Prefixes(state, copies=copies) if prefix_cache else None
        self._state = state
        self._places = Places(state, rows=rows, prefixes=prefixes)
        self._one_draw = Draws.greedy(1, vocab_size=tokenizer.vocab_size)
        self._drafter = Drafter(
            runner, vocab_size=tokenizer.vocab_size, can_go_back=state.can_go_back
        )
        self._next = 0
        # The texts that the step continues which is being computed, or was last.
        self.stepping: list[int] = []
        # What was chosen in a step that failed then.
        self._unsaid: list[Piece] = []

    @property
    def is_idle(self) -> bool:
        """Whether no text is being written, or waits, and all that was chosen has been said."""
        return not self._places.waiting and not self._places.running and not self._unsaid

    @property
    def load(self) -> Load:
        """What it has to do, and what that takes."""
        return self._places.load

    def add(self, ids: Sequence[int], **options: Unpack[GenerationOptions]) -> list[int]:
        """Begin to continue a prompt; the rows of its texts, one, or as many as option `n` says.

        Raises
        ------
        ContextLengthError
            If the prompt and `max_tokens` together exceed the capacity or the pages.
        InputError
            If the prompt is empty or holds ids that the model does not have, or an option is out of range.
        """
        return self.add_all([ids], **options)

    def add_all(
        self, prompts: Sequence[Sequence[int]], **options: Unpack[GenerationOptions]
    ) -> list[int]:
        """Begin to continue several prompts, as `add` does one; the rows of the first prompt's texts come first."""
        wanted = read_options(options)
        if wanted.cache is not None:
            raise InputError("a session has one cache for all prompts: pass it to its `restore`")
        if not prompts:
            raise InputError("there is no prompt: pass at least one")
        for ids in prompts:
            check_ids(ids, self.runner.config)
        longest = max(map(len, prompts))
        max_tokens = tokens_after(
            longest, wanted.max_tokens, self.runner.config, thoughts=wanted.thoughts
        )
        # The last token is never fed back.
        needed = longest + max(max_tokens - 1, 0)
        if needed > self.capacity or num_pages(needed) > self._state.num_pages:
            room = min(self.capacity, self._state.num_pages * PAGE)
            raise ContextLengthError(
                f"a prompt of {longest} tokens and max_tokens={max_tokens} do not fit into a session for {room} "
                "tokens: pass fewer, or make the session with more capacity and pages"
            )
        for ids in prompts:
            # What could not be drawn for is refused now, and not in a step with others.
            tried = replace(wanted.sampling, seed=0)
            Sampler(tried, ids, held_back=wanted.stop_ids).fill(self._one_draw, 0)
        if wanted.draft and not self.runner.is_exact:
            raise InputError(
                f"draft=True on backend {self.runner.name}: there a text could be another, since its numbers depend on "
                "how many tokens are read at once; load the model with backend numba, or leave draft out"
            )
        if wanted.draft == "heads" and not self._has_heads:
            raise InputError(
                "draft='heads' in a session whose heads read nothing: make it with heads=True"
            )
        texts = new_texts(prompts, wanted, self.tokenizer, first=self._next, max_tokens=max_tokens)
        self._next += len(texts)
        self._places.waiting += texts
        return [text.row for text in texts]

    def restore(self, cache: PromptCache) -> None:
        """Keep what was read before, so that a prompt that begins with it is read from there on.

        That this model read it is for the caller to see to, as `nanochat.lm.Model.load_cache` does.

        Raises
        ------
        FormatError
            If another backend made it, or with another storage of keys and values.
        InputError
            If the session keeps no rows, or none of that length.
        """
        if not isinstance(cache, PromptCache):
            raise InputError(
                f"{cache!r:.80} is no prompt cache: pass what model.load_cache(path) returns"
            )
        has_cache = self._places.prefixes is not None
        if not has_cache or len(cache.ids) > self.capacity:
            raise InputError(
                f"a cache of {len(cache.ids)} tokens, for a session with capacity={self.capacity} and "
                f"prefix_cache={has_cache}: make it with as much capacity, and with one"
            )
        if not self._state.free_rows:
            raise InputError("all rows are being written: restore a cache before texts begin")
        self._places.restore(cache.ids, cache.arrays)

    def cancel(self, row: int, *, keep: bool = True) -> None:
        """End a text at once: it gives no more pieces, and its memory is free.

        What it has read is kept for others, unless it shall not be.

        Raises
        ------
        InputError
            If the text has ended, or there never was one.
        """
        text = self._places.find(row)
        if text is None:
            raise InputError(
                f"row {row} is no text that is being written: it has ended, or was never begun"
            )
        self._places.leave(text, keep=keep)

    def holds(self, row: int) -> bool:
        """Whether a text is being written, or waits: after a step that failed, one may have ended without a word."""
        return self._places.find(row) is not None

    def step(self) -> list[Piece]:
        """Continue every text by one token, or read of its prompt; what was chosen, in the order of the rows.

        Tokens that end a thought of which `Thoughts.budget` is used up come all at once; the next step reads them.
        A text for which no token can be chosen ends with an error; the others go on.
        """
        self.stepping = []
        pieces, self._unsaid = self._unsaid, []
        try:
            self._admit(pieces)
            self._tell_prompt(pieces)
            self._continue(pieces)
        except BaseException:
            # Nobody knows what a row remembers that was torn out of a step: its text reads again what it has.
            self._places.begin_again(self.stepping)
            self._unsaid = pieces
            raise
        return sorted(pieces, key=lambda piece: piece.row)

    def _continue(self, pieces: list[Piece]) -> None:
        """Let texts read, and choose tokens for each that has read all."""
        may_guess = True
        while spans := self._places.spans(self._pace):
            began = time.perf_counter()
            # First those that have read all, for which a token is chosen.
            spans.sort(key=lambda span: span[0].read + len(span[1]) < len(span[0].ids))
            self.stepping = [text.row for text, _ in spans]
            # Of each text, or of none while prompts are read.
            guesses = self._drafter.guesses(spans) if may_guess else []
            befores = [self._places.before(text, guess) for text, guess in guesses]
            try:
                choices = self._choose(spans, [guess for _, guess in guesses])
            except MemoryShortageError:
                # Nobody gives way for what is only guessed.
                if not any(guess.tokens for _, guess in guesses) and not self._places.make_room():
                    raise
                may_guess = False
                continue
            for text, ids in spans:
                self._places.was_read(text, len(ids))
            if guesses:
                self._take_guesses(guesses, befores, choices, pieces)
            else:
                self._take_tokens([text for text, _ in spans], choices, pieces)
            self._note_seconds(time.perf_counter() - began, spans, guesses)
            break

    def _choose(self, spans: Sequence[tuple[Text, list[int]]], guesses: Sequence[Guess]) -> Choices:
        """Let texts read, with what is guessed to follow, and choose a token for each that has read all then."""
        ends = [text for text, ids in spans if text.read + len(ids) == len(text.ids)]
        tokens = [ids for _, ids in spans]
        if guesses:
            tokens = [[*ids, *guess.tokens] for ids, guess in zip(tokens, guesses, strict=True)]
        drafted = [len(guess.tokens) for guess in guesses]
        return self.runner.draw(
            self._state,
            [text.place for text, _ in spans],
            tokens,
            [text.sampler for text in ends],
            vocab_size=self.tokenizer.vocab_size,
            with_logits=any(text.needs_logits for text in ends),
            # A text that must read several tokens has them repeated, too, with one choice after the last.
            drafted=drafted if max(map(len, tokens)) > 1 else (),
        )

    def _take_tokens(self, texts: Sequence[Text], choices: Choices, pieces: list[Piece]) -> None:
        """Continue each of the first texts with the token that was chosen for it."""
        for row, text in zip(range(len(choices.tokens)), texts, strict=False):
            if text.read == len(text.prompt.ids):
                text.prompt.was_read(text, choices.logits, row, self._state)
            pieces += self._push(text, choices, row)

    def _take_guesses(
        self,
        guesses: Sequence[tuple[Text, Guess]],
        befores: Sequence[Beginning | None],
        choices: Choices,
        pieces: list[Piece],
    ) -> None:
        """Continue each text with the tokens that were chosen, as far as its guesses stand."""
        asking = []
        row = 0
        for (text, guess), before in zip(guesses, befores, strict=True):
            try:
                found, stood = text.take(choices, row, guess)
            except Exception as error:
                found, stood = [failed_piece(text, error)], 0
            self._places.went_on(text, guess, stood, before)
            pieces += self._left(text, found)
            if choices.ahead is not None and text.is_drafted and not found[-1].finish_reason:
                asking.append((text, row + stood))
            row += 1 + len(guess.tokens)
        self._drafter.ask_ahead(asking, choices)

    def _note_seconds(
        self,
        seconds: float,
        spans: Sequence[tuple[Text, list[int]]],
        guesses: Sequence[tuple[Text, Guess]],
    ) -> None:
        """Learn what a step takes."""
        counts = [len(ids) for _, ids in spans]
        guessed = sum(len(guess.tokens) for _, guess in guesses)
        if guesses:
            self._drafter.note(sum(counts) + guessed, seconds)
        if not guessed:
            read = [count for count in counts if count > 1]
            self._pace.note(seconds, num_writing=len(counts) - len(read), num_read=sum(read))

    def _tell_prompt(self, pieces: list[Piece]) -> None:
        """Read of the first prompt whose log-probabilities are wanted, in a step of its own."""
        text = next((text for text in self._places.running if not text.prompt.is_told), None)
        if text is None:
            return
        ids = text.ids[text.read : text.read + _TOLD_AT_ONCE]
        self.stepping = [text.row]
        while True:
            try:
                logits = self.runner.step(self._state, [text.place], [ids], every=True)
            except MemoryShortageError:
                if not self._places.make_room():
                    raise
                if text not in self._places.running:
                    return
            else:
                break
        self._places.was_read(text, len(ids))
        text.prompt.tell(logits[:, : self.tokenizer.vocab_size])
        if text.prompt.is_told:
            text.prompt.was_read(text, logits, len(ids) - 1, self._state)
            pieces += self._first(text, logits[-1])

    def pieces(
        self, prompts: Sequence[Sequence[int]], **options: Unpack[GenerationOptions]
    ) -> Generator[Piece, None, None]:
        """Continue prompts until all their texts have ended; see `generate`. No other text may be in the session."""
        if not self.is_idle:
            raise InputError("other texts are being written in this session: use `add` and `step`")
        first = self._next
        rows = set(self.add_all(prompts, **options))
        return self._run(rows, first)

    def _run(self, rows: set[int], first: int) -> Generator[Piece, None, None]:
        try:
            while rows:
                for piece in self.step():
                    if piece.finish_reason is not None:
                        rows.remove(piece.row)
                    if piece.error is not None:
                        raise piece.error
                    yield piece._replace(row=piece.row - first) if first else piece
        finally:
            # Whoever stops listening ends the texts, and nobody hears what was not said.
            for row in filter(self.holds, rows):
                self.cancel(row)
            self._unsaid.clear()

    def _admit(self, pieces: list[Piece]) -> None:
        """Give waiting texts rows; the first token of those whose prompt has been read."""
        for text in self._places.admit():
            if text.prompt.logits is not None and text.read == len(text.ids):
                logits = text.prompt.logits
                text.prompt.leave(text, self._state)
                pieces += self._first(text, logits)

    def _first(self, text: Text, logits: NDArray[np.float32]) -> list[Piece]:
        """Begin a text whose prompt's last logits, (V,), are there."""
        try:
            choices = self.runner.choose(
                logits[None], [text.sampler], vocab_size=self.tokenizer.vocab_size
            )
        except Exception as error:
            return self._left(text, [failed_piece(text, error)])
        return self._push(text, choices, 0)

    def _push(self, text: Text, choices: Choices, row: int) -> list[Piece]:
        try:
            pieces = text.push(choices, row) if text.tokens_left else [text.end()]
        except Exception as error:
            pieces = [failed_piece(text, error)]
        return self._left(text, pieces)

    def _left(self, text: Text, pieces: list[Piece]) -> list[Piece]:
        """Pieces of a text, which leaves if the last one ends it."""
        if pieces[-1].finish_reason is not None:
            self._places.leave(text, keep=pieces[-1].error is None)
        return pieces


def generate(
    engine: Runner[State],
    tokenizer: TextCodec,
    prompts: Sequence[Sequence[int]],
    **options: Unpack[GenerationOptions],
) -> Generator[Piece, None, None]:
    """Continue every prompt until it stops; the pieces of the rows arrive in turn, one token each.

    The tokenizer's stop tokens end a row. Closing the iterator, or an interrupt (Ctrl-C) inside
    it, frees the state; the pieces that it gave before are complete.

    Parameters
    ----------
    prompts : sequence of sequences of int
        Token ids, as a rule with ``<|bos|>`` first.

    Raises
    ------
    ContextLengthError
        If a prompt and `max_tokens` together exceed the model's context.
    InputError
        If there is no prompt, a prompt is empty or holds ids that the model does not have, or an option is out of
        range.
    """
    if not prompts:
        raise InputError("there is no prompt: pass at least one")
    for ids in prompts:
        check_ids(ids, engine.config)
    wanted = read_options(options)
    longest = max(map(len, prompts))
    max_tokens = tokens_after(longest, wanted.max_tokens, engine.config, thoughts=wanted.thoughts)
    texts = len(prompts) * wanted.n
    cache = wanted.cache
    if cache is not None and wanted.draft == "heads":
        raise InputError("draft='heads' with a cache, in which heads have no part: pass draft=True")
    capacity = max(longest + max_tokens - 1, len(cache.ids) if cache else 0)
    rows = min(texts, _MOST_ROWS)
    pages = pages_of_rows(rows, capacity) + (0 if cache is None else num_pages(len(cache.ids)))
    session = Session(
        engine,
        tokenizer,
        rows=rows,
        capacity=capacity,
        pages=pages,
        prefix_cache=cache is not None,
        heads=wanted.draft == "heads",
    )
    if cache is not None:
        session.restore(cache)
    rest: GenerationOptions = {**options, "cache": None}
    return session.pieces(prompts, **rest)
