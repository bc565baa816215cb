"""This file holds the rows of a session: which texts have one, what each goes on from, and who gives way to others.

A text waits until there is a row for it, and pages for its prompt. It goes on from whatever begins like it: a prompt of
several texts that one of them has read, another text's row, or what the prefix cache has kept.
"""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from nanochat.generation.drafts import Guess
from nanochat.generation.pace import Pace
from nanochat.generation.prefixes import Beginning, Prefixes, shared_length
from nanochat.generation.texts import Text
from nanochat.rows import PAGE, RowState, Snapshot, num_pages

__all__ = ["Load", "Places"]

State = TypeVar("State", bound=RowState[Any])


@dataclass(frozen=True, kw_only=True)
class Load:
    """Texts of a session that are being written and that wait; all pages, those in use, and those kept for others.

    `put_aside` is how often a text was, since the session began, for want of pages.
    """

    running: int
    waiting: int
    put_aside: int
    pages: int
    pages_used: int
    pages_kept: int


class Places(Generic[State]):
    """Texts, and the rows of a state that some of them have.

    Parameters
    ----------
    rows : int
        Texts that have one at the same time.
    prefixes : Prefixes, optional
        What is kept of texts that have ended.
    """

    def __init__(self, state: State, *, rows: int, prefixes: Prefixes | None) -> None:
        self.state = state
        self.prefixes = prefixes
        self._most = rows
        # In the order in which they came; those that run have a row.
        self.waiting: list[Text] = []
        self.running: list[Text] = []
        # How often a text had to wait again.
        self.num_put_aside = 0

    @property
    def load(self) -> Load:
        """What there is to do, and what that takes."""
        state = self.state
        return Load(
            running=len(self.running),
            waiting=len(self.waiting),
            put_aside=self.num_put_aside,
            pages=state.num_pages,
            pages_used=state.num_pages - state.free_pages,
            pages_kept=0 if self.prefixes is None else self.prefixes.num_pages,
        )

    def find(self, row: int) -> Text | None:
        """The text of that number."""
        return next((text for text in (*self.waiting, *self.running) if text.row == row), None)

    def admit(self) -> Iterator[Text]:
        """Give waiting texts rows, as far as there are any, one after the other."""
        for text in list(self.waiting):
            if len(self.running) == self._most:
                break
            source, shared = self._source(text)
            if not self._waits(source, shared):
                if not self._has_pages_for(text, shared):
                    break
                # A page that was only kept may have been given up for it.
                source, shared = self._source(text)
            if self._waits(source, shared):
                continue
            self.waiting.remove(text)
            self.running.append(text)
            self._place(text, source, shared)
            yield text

    def spans(self, pace: Pace) -> list[tuple[Text, list[int]]]:
        """The tokens of the next step: one of each text that is being written, and some of prompts."""
        new = [(text, text.ids[text.read :]) for text in self.running if text.prompt.is_told]
        num_writing = sum(len(ids) == 1 for _, ids in new)
        # That one more is read is what the others wait for.
        num_reading = max(len(new) - num_writing - 1, 0)
        left = pace.tokens(num_writing=num_writing, num_reading=num_reading)
        found = []
        for text, ids in new:
            if len(ids) > 1:
                ids = ids[: min(left, self._until_kept(text))]
                left -= len(ids)
            if ids:
                found.append((text, ids))
        return found

    def _until_kept(self, text: Text) -> int:
        """How many tokens a text may read at once, to stop where it is kept."""
        if self.prefixes is None or self.state.can_go_back:
            return len(text.ids)
        return self.prefixes.stride - text.read % self.prefixes.stride

    def was_read(self, text: Text, count: int) -> None:
        """Count tokens that a text has read, and keep what it has read of its prompt, and writes no more."""
        text.read += count
        prompt = text.prompt
        if self.prefixes is None or text.read > len(prompt.ids):
            return
        whole = not self.state.can_go_back
        if not whole or text.read == len(prompt.ids) or text.read % self.prefixes.stride == 0:
            self.prefixes.keep(text.ids[: text.read], text.place, salt=prompt.salt, whole=whole)

    def before(self, text: Text, guess: Guess) -> Beginning | None:
        """What a text comes back to if a guess does not stand, where its row cannot go back by itself."""
        if self.state.can_go_back or not guess.tokens:
            return None
        return Beginning(length=text.read, recurrent=self.state.recurrent(text.place))

    def went_on(self, text: Text, guess: Guess, stood: int, before: Beginning | None) -> None:
        """Count the tokens that were guessed and stood; what is read of the others is forgotten.

        A row that has come back reads those that stood once more, with what follows them.
        """
        if stood == len(guess.tokens):
            text.read += stood
        elif before is None:
            text.read += stood
            self.state.truncate(text.place, text.read)
        else:
            text.read = before.length
            self.state.truncate(text.place, text.read, before.recurrent)

    def leave(self, text: Text, *, keep: bool) -> None:
        """End a text; what it has read is kept, if that is wanted."""
        (self.running if text in self.running else self.waiting).remove(text)
        if keep and self.prefixes is not None and text.read:
            read = text.ids[: text.read]
            self.prefixes.keep(read, text.place, salt=text.prompt.salt, whole=True)
        self._release(text)
        text.prompt.leave(text, self.state)

    def restore(self, ids: Sequence[int], arrays: Sequence[Any]) -> None:
        """Keep what was read before; see `nanochat.rows.RowState.write_row`."""
        assert self.prefixes is not None
        while self.state.free_pages < num_pages(len(ids)) and self.prefixes.forget():
            pass
        row = self.state.write_row(len(ids), arrays)
        self.prefixes.keep(ids, row, salt="", whole=True)
        self.state.release(row)

    def begin_again(self, rows: Container[int]) -> None:
        """Let texts that have been torn out of a step wait, and read what they have once more."""
        torn = [text for text in self.running if text.row in rows]
        for text in torn:
            self.running.remove(text)
            self._release(text)
        self.waiting = sorted([*torn, *self.waiting], key=lambda text: text.row)

    def make_room(self) -> bool:
        """Give up a page that is only kept, or put the youngest text aside; whether there was one beside the oldest."""
        if self._forget():
            return True
        if len(self.running) < 2:
            prompts = [text.prompt for text in self.waiting if text.prompt.snapshot is not None]
            for prompt in prompts[:1]:
                prompt.forget(self.state)
            return bool(prompts)
        text = max(self.running, key=lambda text: text.row)
        self.running.remove(text)
        self.waiting.insert(0, text)
        self.num_put_aside += 1
        self._release(text)
        return True

    def _source(self, text: Text) -> tuple[Text | Beginning | Snapshot[Any] | None, int]:
        """From where a text continues, and how many tokens it need not read; nowhere yet if it shall wait for them."""
        prompt = text.prompt
        if prompt.snapshot is not None and len(text.ids) == len(prompt.ids):
            return prompt.snapshot, len(prompt.ids)
        best: Text | Beginning | None = None
        longest = 0
        # The logits after the last token are needed.
        ids = text.ids[:-1]
        if not prompt.is_told:
            # Logits of all tokens are.
            ids = []
        if self.prefixes is not None:
            kept = self.prefixes.find(ids, salt=prompt.salt)
            best, longest = (kept if kept.length else None), kept.length
        for other in self.running:
            if other.prompt.salt != prompt.salt:
                continue
            common = shared_length(ids, other.ids)
            reached = min(common, other.read)
            if not self.state.can_go_back and reached < other.read:
                reached = 0
            if other.prompt is prompt and other.read < len(prompt.ids):
                return None, len(prompt.ids)
            if common - max(reached, longest) >= PAGE and self.state.can_go_back:
                return None, common
            if reached > longest:
                best, longest = other, reached
        return best, longest

    @staticmethod
    def _waits(source: Text | Beginning | Snapshot[Any] | None, shared: int) -> bool:
        """Whether somebody else is still reading what a text begins with."""
        return source is None and shared > 0

    def _place(
        self, text: Text, source: Text | Beginning | Snapshot[Any] | None, shared: int
    ) -> None:
        match source:
            case None:
                text.place = self.state.admit()
            case Snapshot():
                text.place = self.state.admit(source)
            case Beginning():
                assert self.prefixes is not None
                self.prefixes.use(text.ids, source, salt=text.prompt.salt)
                text.place = self.state.admit_pages(source.pages, shared, source.recurrent)
            case _:
                text.place = self.state.fork(source.place, length=shared)
        text.read = shared
        if text.cached is None:
            text.cached = shared

    def _has_pages_for(self, text: Text, shared: int) -> bool:
        """Whether a prompt fits beside what runs, for which pages that are only kept are given up."""
        # One more than it takes, so that it does not run out at once; and the copy of a page that is shared.
        needed = num_pages(len(text.ids) + 1) - shared // PAGE
        while self.state.free_pages < needed:
            if not self._forget():
                return not self.running
        return True

    def _forget(self) -> bool:
        return self.prefixes is not None and self.prefixes.forget()

    def _release(self, text: Text) -> None:
        if text.place < 0:
            # Another text of its prompt may be reading that.
            return
        self.state.release(text.place)
        text.place, text.read = -1, 0
        if not text.prompt.is_told:
            text.prompt.logprobs.clear()
