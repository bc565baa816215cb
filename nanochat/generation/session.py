"""This file holds generation: prompts are read, tokens are chosen one after the other, and text comes out in pieces.

A `Session` holds the texts that are being written, each a row of one state: they begin and end at different times, and
none changes another's tokens. `generate` is a session for some prompts that begin together.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, Unpack

from nanochat.draws import Draws
from nanochat.errors import ContextLengthError, InputError, MemoryShortageError
from nanochat.generation.cache import PromptCache
from nanochat.generation.engine import PREFILL_CHUNK, Choices, Runner, check_ids, choose
from nanochat.generation.options import (
    GenerationOptions,
    Piece,
    read_options,
    seeds_of,
    tokens_after,
)
from nanochat.generation.sampling import Sampler, StopStrings
from nanochat.generation.texts import Kept, Prompt, Text, shared_length
from nanochat.rows import PAGE, RowState, Snapshot, num_pages
from nanochat.text.codec import TextCodec

__all__ = ["Session", "generate"]

State = TypeVar("State", bound=RowState[Any])

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
    keep : int
        Ended texts whose rows are kept, so that a prompt that begins like one is read from there on: a conversation
        reads only what is new.
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
        keep: int = 0,
    ) -> None:
        self.runner = runner
        self.tokenizer = tokenizer
        self.capacity = runner.config.context_length if capacity is None else capacity
        self.prompt_tokens = prompt_tokens
        self._keep = keep
        if pages is None:
            # And one for each row whose last page others begin with.
            pages = (rows + keep) * num_pages(self.capacity) + rows
        self._state = runner.new_state(rows=rows + keep, capacity=self.capacity, pages=pages)
        self._most = rows
        self._one_draw = Draws.greedy(1, vocab_size=tokenizer.vocab_size)
        # In the order in which they came; those that run have a row.
        self._waiting: list[Text] = []
        self._running: list[Text] = []
        self._kept: list[Kept] = []
        self._next = 0

    @property
    def is_idle(self) -> bool:
        """Whether no text is being written, or waits."""
        return not self._waiting and not self._running

    def add(self, ids: Sequence[int], **options: Unpack[GenerationOptions]) -> list[int]:
        """Begin to continue a prompt; the rows of its texts, one, or as many as option `n` says.

        Raises
        ------
        ContextLengthError
            If the prompt and `max_tokens` together exceed the capacity or the pages.
        InputError
            If the prompt is empty or holds ids that the model does not have, or an option is out of range.
        """
        return self._add([ids], options)

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
        if not self._keep or len(cache.ids) > self.capacity:
            raise InputError(
                f"a cache of {len(cache.ids)} tokens, for a session with capacity={self.capacity} and "
                f"keep={self._keep}: make it with as much capacity, and keep=1 or more"
            )
        while len(self._kept) >= self._keep or not self._state.free_rows:
            if not self._forget():
                raise InputError("all rows are being written: restore a cache before texts begin")
        place = self._state.write_row(len(cache.ids), cache.arrays)
        self._kept.append(Kept(ids=[*cache.ids], place=place))

    def cancel(self, row: int) -> None:
        """End a text at once: it gives no more pieces, and its memory is free.

        Raises
        ------
        InputError
            If the text has ended, or there never was one.
        """
        for texts in (self._waiting, self._running):
            for text in texts:
                if text.row == row:
                    texts.remove(text)
                    self._release(text)
                    text.prompt.leave(text, self._state)
                    return
        raise InputError(
            f"row {row} is no text that is being written: it has ended, or was never begun"
        )

    def step(self) -> list[Piece]:
        """Continue every text by one token, or read of its prompt; what was chosen, in the order of the rows.

        Tokens that end a thought of which `Thoughts.budget` is used up come all at once; the next step reads them.
        A text for which no token can be chosen ends with an error; the others go on.
        """
        pieces = self._admit()
        spans = self._spans()
        while spans:
            # First those that have read all, for which a token is chosen.
            spans.sort(key=lambda span: span[0].read + len(span[1]) < len(span[0].ids))
            ends = [text for text, ids in spans if text.read + len(ids) == len(text.ids)]
            try:
                choices = self.runner.draw(
                    self._state,
                    [text.place for text, _ in spans],
                    [ids for _, ids in spans],
                    [text.sampler for text in ends],
                    vocab_size=self.tokenizer.vocab_size,
                    with_logits=any(text.needs_logits for text in ends),
                )
            except MemoryShortageError:
                if not self._make_room():
                    raise
                spans = self._spans()
                continue
            for text, ids in spans:
                text.read += len(ids)
            for row, text in enumerate(ends):
                if text.read == len(text.prompt.ids):
                    text.prompt.was_read(text, choices.logits, row, self._state)
                pieces += self._push(text, choices, row)
            break
        return sorted(pieces, key=lambda piece: piece.row)

    def pieces(
        self, prompts: Sequence[Sequence[int]], **options: Unpack[GenerationOptions]
    ) -> Generator[Piece, None, None]:
        """Continue prompts until all their texts have ended; see `generate`. No other text may be in the session."""
        if not self.is_idle:
            raise InputError("other texts are being written in this session: use `add` and `step`")
        first = self._next
        rows = set(self._add(prompts, options))
        return self._run(rows, first)

    def _run(self, rows: set[int], first: int) -> Generator[Piece, None, None]:
        try:
            while rows:
                for piece in self.step():
                    if piece.finish_reason is not None:
                        rows.remove(piece.row)
                    if piece.error is not None:
                        raise piece.error
                    yield replace(piece, row=piece.row - first)
        finally:
            # Whoever stops listening ends the texts.
            for row in rows:
                self.cancel(row)

    def _add(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[int]:
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
        needed = longest + max_tokens - 1
        if needed > self.capacity or num_pages(needed) > self._state.num_pages:
            room = min(self.capacity, self._state.num_pages * PAGE)
            raise ContextLengthError(
                f"a prompt of {longest} tokens and max_tokens={max_tokens} do not fit into a session for {room} "
                "tokens: pass fewer, or make the session with more capacity and pages"
            )
        seeds = seeds_of(wanted.seed, len(prompts) * wanted.n)
        for ids in prompts:
            # What could not be drawn for is refused now, and not in a step with others.
            Sampler(replace(wanted.sampling, seed=0), ids).fill(self._one_draw, 0)
        first = self._next
        for ids in prompts:
            prompt = Prompt(ids=tuple(map(int, ids)), unread=wanted.n)
            for _ in range(wanted.n):
                settings = replace(wanted.sampling, seed=seeds[self._next - first])
                self._waiting.append(
                    Text(
                        row=self._next,
                        prompt=prompt,
                        tokenizer=self.tokenizer,
                        sampler=Sampler(
                            settings, prompt.ids, with_logprob=wanted.logprobs is not None
                        ),
                        stops=StopStrings(wanted.stops),
                        tokens_left=max_tokens,
                        num_alternatives=wanted.logprobs,
                        thoughts=wanted.thoughts,
                    )
                )
                self._next += 1
        return list(range(first, self._next))

    # Rows of the state.

    def _admit(self) -> list[Piece]:
        """Give waiting texts rows, as far as there are any, and the first token of those whose prompt has been read."""
        pieces: list[Piece] = []
        for text in list(self._waiting):
            if len(self._running) == self._most:
                break
            source, shared = self._source(text)
            if source is None and shared:
                # Somebody else is reading what it begins with.
                continue
            if not self._has_pages_for(text, shared):
                break
            # A row that was only kept may have been given up for it.
            source, shared = self._source(text)
            self._waiting.remove(text)
            self._running.append(text)
            self._place(text, source, shared)
            if text.prompt.logits is not None and text.read == len(text.ids):
                logits = text.prompt.logits
                text.prompt.leave(text, self._state)
                vocab_size = self.tokenizer.vocab_size
                choices = choose(logits[None], [text.sampler], vocab_size=vocab_size)
                pieces += self._push(text, choices, 0)
        return pieces

    def _source(self, text: Text) -> tuple[Text | Kept | Snapshot[Any] | None, int]:
        """From where a text continues, and how many tokens it need not read; nowhere yet if it shall wait for them."""
        prompt = text.prompt
        if prompt.snapshot is not None and len(text.ids) == len(prompt.ids):
            return prompt.snapshot, len(prompt.ids)
        best: Text | Kept | None = None
        longest = 0
        others: list[Text | Kept] = [*self._kept, *self._running]
        for other in others:
            # The logits after the last token are needed.
            common = shared_length(text.ids[:-1], other.ids)
            reached = min(common, other.read)
            if not self._state.can_go_back and reached < other.read:
                reached = 0
            if isinstance(other, Text) and other.prompt is prompt and other.read < len(prompt.ids):
                return None, common
            if isinstance(other, Text) and common - reached >= PAGE and self._state.can_go_back:
                return None, common
            if reached > longest:
                best, longest = other, reached
        return best, longest

    def _place(self, text: Text, source: Text | Kept | Snapshot[Any] | None, shared: int) -> None:
        match source:
            case None:
                text.place = self._state.admit()
            case Snapshot():
                text.place = self._state.admit(source)
            case Kept(read=read) if read == shared:
                self._kept.remove(source)
                text.place = source.place
            case _:
                text.place = self._state.fork(source.place, length=shared)
        text.read = shared

    def _has_pages_for(self, text: Text, shared: int) -> bool:
        """Whether a prompt fits beside what runs, for which rows that are only kept are given up."""
        # One more than it takes, so that it does not run out at once; and the copy of a page that is shared.
        needed = num_pages(len(text.ids) + 1) - shared // PAGE
        while self._state.free_rows == 0 or self._state.free_pages < needed:
            if not self._forget():
                return not self._running
        return True

    def _make_room(self) -> bool:
        """Give up a row that is only kept, or put the youngest text aside; whether there was one beside the oldest."""
        if self._forget():
            return True
        if len(self._running) < 2:
            prompts = [text.prompt for text in self._waiting if text.prompt.snapshot is not None]
            for prompt in prompts[:1]:
                prompt.forget(self._state)
            return bool(prompts)
        text = max(self._running, key=lambda text: text.row)
        self._running.remove(text)
        self._waiting.insert(0, text)
        self._release(text)
        return True

    def _forget(self) -> bool:
        if not self._kept:
            return False
        self._state.release(self._kept.pop(0).place)
        return True

    def _release(self, text: Text) -> None:
        if text.place >= 0:
            self._state.release(text.place)
        text.place, text.read = -1, 0

    def _spans(self) -> list[tuple[Text, list[int]]]:
        """The tokens of the next step: one of each text that is being written, and some of prompts."""
        spans, left = [], self.prompt_tokens
        for text in self._running:
            new = text.ids[text.read :]
            if len(new) > 1:
                new = new[:left]
                left -= len(new)
            if new:
                spans.append((text, new))
        return spans

    def _push(self, text: Text, choices: Choices, row: int) -> list[Piece]:
        pieces = text.push(choices, row)
        if pieces[-1].finish_reason is not None:
            self._running.remove(text)
            if self._keep and pieces[-1].error is None:
                if len(self._kept) == self._keep:
                    self._forget()
                self._kept.append(Kept(ids=text.ids[: text.read], place=text.place))
            else:
                self._release(text)
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
    capacity = max(longest + max_tokens - 1, len(cache.ids) if cache else 0)
    rows, keep = min(texts, _MOST_ROWS), int(cache is not None)
    session = Session(engine, tokenizer, rows=rows, capacity=capacity, keep=keep)
    if cache is not None:
        session.restore(cache)
    rest: GenerationOptions = {**options, "cache": None}
    return session.pieces(prompts, **rest)
