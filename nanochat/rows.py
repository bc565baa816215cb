"""This file holds the rows of a state: sequences that come and go, how far each is, and the pages of its positions.

A row is one sequence. Its keys and values lie in pages of `PAGE` positions, which a table names in order, so that rows
grow without being moved and may share what they have in common: a page that several rows hold is copied by the first
that writes to it. Backends own the memory; what is where is decided here, once for all of them.

A step continues some rows by some tokens each. Its tokens are flat: those of the first row, then those of the next.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanochat.draws import Draws
from nanochat.errors import (
    BackendError,
    ContextLengthError,
    InputError,
    MemoryShortageError,
)
from nanochat.ops import Slot

__all__ = ["PAGE", "Group", "RowState", "Snapshot", "Step", "num_pages", "step_of_sequences"]
__all__ += ["MOST_TOGETHER", "pages_of_rows", "require_segments", "step_of_segments"]
__all__ += ["step_of_spans"]

Recurrent = TypeVar("Recurrent")

# Positions of a page.
PAGE = 128
# Tokens of a step in which rows have several and each is drawn after: more are not guessed, nor repeated.
MOST_TOGETHER = 64

_Ints = NDArray[np.int64]
_UNREADABLE = (
    "this backend cannot give out what a row has read: load the model with another, such as numba"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """Some tokens of some rows: M spans, each of one row, and N flat tokens.

    Parameters
    ----------
    rows, starts, counts, offsets : arrays (M,)
        Of each span, the row, its position before the step, its tokens, and where in the flat tokens these begin.
    spans, positions : arrays (N,)
        Of each token, the number of its span, and its position in the row.
    """

    rows: _Ints
    starts: _Ints
    counts: _Ints
    offsets: _Ints
    spans: _Ints
    positions: _Ints

    @property
    def token_rows(self) -> _Ints:
        """The row of each token, (N,)."""
        rows: _Ints = self.rows[self.spans]
        return rows

    @property
    def last_tokens(self) -> _Ints:
        """Where in the flat tokens the last one of each row is, (M,)."""
        last: _Ints = self.offsets + self.counts - 1
        return last

    def groups(self) -> list["Group"]:
        """The spans, those of equally many tokens together."""
        counts = self.counts.tolist()
        found = []
        for count in dict.fromkeys(counts):
            spans = np.flatnonzero(self.counts == count)
            whole = len(spans) == len(counts)
            tokens = None if whole else self.offsets[spans, None] + np.arange(count)
            found.append(
                Group(rows=self.rows[spans], starts=self.starts[spans], count=count, tokens=tokens)
            )
        return found

    def parts(self) -> list[tuple[int, int, slice]]:
        """Each row, its position before the step, and its part of the flat tokens."""
        parts = zip(
            self.rows.tolist(),
            self.starts.tolist(),
            self.offsets.tolist(),
            self.counts.tolist(),
            strict=True,
        )
        return [(row, start, slice(at, at + count)) for row, start, at, count in parts]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Spans of one step that have equally many tokens, for backends that compute such arrays at once.

    Parameters
    ----------
    rows, starts : arrays (M,)
        As in `Step`.
    count : int
        Tokens of each.
    tokens : array (M, count) or None
        Where they are in the flat tokens; None where they are all of them, in order.
    """

    rows: _Ints
    starts: _Ints
    count: int
    tokens: _Ints | None

    @property
    def end(self) -> int:
        """The positions of the longest row, with this step's."""
        return int(self.starts.max()) + self.count


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot(Generic[Recurrent]):
    """What a row was at some position, to be continued by other rows; from `RowState.snapshot`."""

    length: int
    pages: tuple[int, ...]
    # What the row remembers besides keys and values, copied.
    recurrent: Recurrent


class RowState(ABC, Generic[Recurrent]):
    """Rows of at most `capacity` positions each, which together have `pages` pages.

    A backend's state is a subclass that keeps arrays with one page more than `pages` and one row more than `rows`, both
    last: room for whatever a step must write and nobody reads.

    Parameters
    ----------
    rows : int
        Sequences that may be held at once.
    capacity : int
        Most positions of a row.
    pages : int, optional
        Pages of all rows; by default enough for every row to be full.
    """

    def __init__(
        self, slots: Sequence[Slot], *, rows: int, capacity: int, pages: int | None = None
    ) -> None:
        for name, number in (("rows", rows), ("capacity", capacity), ("pages", pages)):
            if number is not None and number < 1:
                raise InputError(f"{name}={number} of a state: pass 1 or more")
        self.slots = tuple(slots)
        # Whether a row may begin with the first positions of another: keys and values are all that it remembers.
        self.can_go_back = all(slot.kind == "attention" for slot in slots)
        self.num_rows = rows
        self.capacity = capacity
        self.num_pages = rows * num_pages(capacity) if pages is None else pages
        self.step: Step | None = None
        # The positions of each row, or None where it is free.
        self._lengths: list[int | None] = [None] * rows
        # The pages of a row in order; what follows them is the page that nobody reads.
        self.table: _Ints = np.full((rows + 1, num_pages(capacity)), self.num_pages, np.int64)
        self._pages: list[list[int]] = [[] for _ in range(rows)]
        self._holders = [0] * self.num_pages
        # What a step that is repeated draws by, by its number of rows and of tokens that may be drawn.
        self.draws: dict[tuple[int, int], Draws] = {}
        self._snapshots: set[Snapshot[Recurrent]] = set()
        self._stepping: list[tuple[int, int]] = []
        # The lowest come first, so that rows which are filled one after the other lie in order.
        self._free = list(range(self.num_pages))[::-1]

    @property
    def rows(self) -> list[int]:
        """The rows that are held."""
        return [row for row, length in enumerate(self._lengths) if length is not None]

    @property
    def free_rows(self) -> int:
        """How many rows may still be admitted."""
        return self._lengths.count(None)

    @property
    def free_pages(self) -> int:
        """How many pages no row and no snapshot holds."""
        return len(self._free)

    @property
    def page_bytes(self) -> int:
        """Bytes of the keys and values of a page, in all slots."""
        return 0

    @property
    def row_bytes(self) -> int:
        """Bytes of what a row remembers besides its pages."""
        return 0

    def length(self, row: int) -> int:
        """The positions of a row that is held."""
        length = self._lengths[row] if 0 <= row < self.num_rows else None
        if length is None:
            raise InputError(
                f"row {row} is not held, for it was never admitted or has been released: the rows are {self.rows}"
            )
        return length

    def admit(self, snapshot: Snapshot[Recurrent] | None = None) -> int:
        """Begin a row, empty or as in a snapshot of this state; its number."""
        if snapshot is None:
            row = self._free_row()
            self._clear(row)
            self._lengths[row] = 0
            return row
        self._require_own(snapshot)
        return self.admit_pages(snapshot.pages, snapshot.length, snapshot.recurrent)

    def admit_pages(
        self, pages: Sequence[int], length: int, recurrent: Recurrent | None = None
    ) -> int:
        """Begin a row with the first positions of pages that somebody holds; its number.

        `recurrent` is what a row remembered there besides keys and values, from `recurrent`; a state that remembers no
        more needs none.
        """
        row = self._free_row()
        if recurrent is not None:
            self._restore(row, recurrent)
        self._share(row, pages, length)
        return row

    def release(self, row: int) -> None:
        """End a row; its number and the pages that nobody else holds are free again."""
        self.length(row)
        self.let_go(self._pages[row])
        self._lengths[row], self._pages[row] = None, []
        self.table[row] = self.num_pages

    def fork(self, row: int, *, length: int | None = None) -> int:
        """Begin another row with what a row holds, without reading or copying its positions; its number.

        With a length, it begins with the first of them only, where that is possible: see `can_go_back`.
        """
        length = self.length(row) if length is None else length
        self._require_begins(row, length, can_go_back=self.can_go_back)
        recurrent = None if self.can_go_back else self._save(row)
        return self.admit_pages(self._pages[row][: num_pages(length)], length, recurrent)

    def truncate(self, row: int, length: int, recurrent: Recurrent | None = None) -> None:
        """Let a row have its first positions only, and go on from there.

        `recurrent` is what it remembered there besides keys and values, from `recurrent`; a state that remembers no
        more needs none.
        """
        can_go_back = self.can_go_back or recurrent is not None
        self._require_begins(row, length, can_go_back=can_go_back)
        if recurrent is not None:
            self._restore(row, recurrent)
        pages, count = self._pages[row], num_pages(length)
        self.let_go(pages[count:])
        self.table[row, count : len(pages)] = self.num_pages
        del pages[count:]
        self._lengths[row] = length

    def pages(self, row: int) -> list[int]:
        """The pages of a row's positions, in order."""
        # A step that was not ended may have taken more.
        return self._pages[row][: num_pages(self.length(row))]

    def recurrent(self, row: int) -> Recurrent:
        """A copy of what a row remembers besides keys and values."""
        self.length(row)
        return self._save(row)

    def hold(self, pages: Sequence[int]) -> None:
        """Keep pages that a row has, also when it is released, until `let_go`."""
        for page in pages:
            self._holders[page] += 1

    def let_go(self, pages: Sequence[int]) -> None:
        """Give back pages that were held; those that nobody else holds are free."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free.append(page)

    def snapshot(self, row: int) -> Snapshot[Recurrent]:
        """What a row is now; `drop` it when no row will begin with it any more."""
        pages = tuple(self.pages(row))
        self.hold(pages)
        snapshot = Snapshot(length=self.length(row), pages=pages, recurrent=self._save(row))
        self._snapshots.add(snapshot)
        return snapshot

    def drop(self, snapshot: Snapshot[Recurrent]) -> None:
        """Give back what a snapshot holds."""
        self._require_own(snapshot)
        self._snapshots.remove(snapshot)
        self.let_go(snapshot.pages)

    def read_row(self, row: int) -> list[NDArray[Any]]:
        """All that a row has read, in arrays for `write_row` of such a state, in this process or another."""
        self.length(row)
        raise BackendError(_UNREADABLE)

    def write_row(self, length: int, arrays: Sequence[NDArray[Any]]) -> int:
        """Begin a row that has read so many positions, of which `read_row` gave the arrays; its number.

        Raises
        ------
        FormatError
            If they are of another state; no row is held then.
        MemoryShortageError
            If there are not enough free pages.
        """
        del length, arrays
        raise BackendError(_UNREADABLE)

    def begin(self, rows: Sequence[int], counts: Sequence[int]) -> Step:
        """Make room for so many tokens of some rows, and make this the step that operations see.

        Raises
        ------
        ContextLengthError
            If a row would exceed its capacity.
        InputError
            If a row is not held, is named twice, or gets no token.
        MemoryShortageError
            If there are not enough free pages. In each case no row has changed.
        """
        starts = [self.length(row) for row in rows]
        if len(set(rows)) < len(rows) or len(rows) != len(counts) or not rows:
            raise InputError(
                f"rows {list(rows)!r:.80} with {len(counts)} counts of tokens: name one row or more, each once, with a "
                "count for each"
            )
        new = 0
        shared: list[tuple[int, int]] = []
        # Of pages that are shared, the holders that are left once the rows before have their own copies.
        holders: dict[int, int] = {}
        for row, start, count in zip(rows, starts, counts, strict=True):
            if count < 1:
                raise InputError(f"row {row} gets {count} tokens: pass 1 or more, or leave it out")
            if start + count > self.capacity:
                raise ContextLengthError(
                    f"{start} tokens seen and {count} more do not fit into a state of {self.capacity}: shorten the "
                    "prompt, ask for fewer tokens, or make the state larger"
                )
            new += max(0, num_pages(start + count) - len(self._pages[row]))
            if start % PAGE:
                number = start // PAGE
                page = self._pages[row][number]
                left = holders.get(page, self._holders[page])
                if left > 1:
                    shared.append((row, number))
                    holders[page] = left - 1
        if new + len(shared) > len(self._free):
            raise MemoryShortageError(
                f"{new + len(shared)} pages of {PAGE} positions are needed, and {len(self._free)} of "
                f"{self.num_pages} are free: release rows, or make the state with more pages"
            )
        for row, number in shared:
            self._own_page(row, number)
        if new:
            for row, start, count in zip(rows, starts, counts, strict=True):
                self._grow(row, num_pages(start + count))
        self._stepping = [*zip(rows, counts, strict=True)]
        self.step = self._arranged(rows, starts, counts)
        return self.step

    def end(self) -> None:
        """Count the tokens of the step, once all operations have seen them."""
        for row, count in self._stepping:
            self._lengths[row] = self.length(row) + count
        self.step, self._stepping = None, []

    def _arranged(self, rows: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> Step:
        return step_of_spans(rows, starts, counts)

    def _require_begins(self, row: int, length: int, *, can_go_back: bool) -> None:
        whole = self.length(row)
        if length != whole and not (can_go_back and 0 < length < whole):
            raise InputError(
                f"row {row} of {whole} positions cannot be continued after {length}: pass 1 to {whole}, or all of them "
                "for a state that remembers more than keys and values, or take a snapshot there"
            )

    def _free_row(self) -> int:
        if None not in self._lengths:
            raise InputError(
                f"all {self.num_rows} rows are held: release one, or make the state with more rows"
            )
        return self._lengths.index(None)

    def _share(self, row: int, pages: Sequence[int], length: int) -> None:
        self.hold(pages)
        self._lengths[row], self._pages[row] = length, [*pages]
        self.table[row, : len(pages)] = pages

    def _grow(self, row: int, count: int) -> None:
        pages = self._pages[row]
        while len(pages) < count:
            page = self._free.pop()
            self._clear_page(page)
            self._holders[page] = 1
            self.table[row, len(pages)] = page
            pages.append(page)

    def _own_page(self, row: int, number: int) -> None:
        pages = self._pages[row]
        page, shared = self._free.pop(), pages[number]
        self._copy_page(shared, page)
        self._holders[page] = 1
        self._holders[shared] -= 1
        self.table[row, number] = pages[number] = page

    def _require_own(self, snapshot: Snapshot[Recurrent]) -> None:
        if snapshot not in self._snapshots:
            raise InputError(
                "the snapshot is of another state, or has been dropped: pass one from `snapshot` of this state"
            )

    @abstractmethod
    def _clear(self, row: int) -> None:
        """Set what a row remembers besides keys and values to that of an empty sequence."""

    @abstractmethod
    def _save(self, row: int) -> Recurrent:
        """A copy of what a row remembers besides keys and values."""

    @abstractmethod
    def _restore(self, row: int, recurrent: Recurrent) -> None:
        """Set what a row remembers besides keys and values."""

    def _clear_page(self, page: int) -> None:
        """Forget what a page held, where a backend reads positions that no query sees."""

    @abstractmethod
    def _copy_page(self, source: int, target: int) -> None:
        """Copy the keys and values of a page, in all slots."""


def pages_of_rows(rows: int, capacity: int) -> int:
    """The pages of rows at their longest, and one for each whose last page others begin with."""
    return rows * num_pages(capacity) + rows


def num_pages(positions: int) -> int:
    """The pages that so many positions take."""
    return -(-positions // PAGE)


def step_of_spans(rows: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> Step:
    """The step that continues each row from its start by so many tokens."""
    spans = np.array([rows, starts, counts], np.int64)
    offsets = np.cumsum(spans[2]) - spans[2]
    return Step(
        rows=spans[0],
        starts=spans[1],
        counts=spans[2],
        offsets=offsets,
        spans=np.repeat(np.arange(len(rows)), spans[2]),
        positions=np.repeat(spans[1] - offsets, spans[2]) + np.arange(spans[2].sum()),
    )


def step_of_segments(segments: NDArray[np.int64]) -> Step:
    """The step that reads packed rows (B, T), each document from its own beginning."""
    flat = require_segments(segments).reshape(-1)
    length = segments.shape[1]
    begins = np.flatnonzero(np.diff(flat, prepend=-1) | (np.arange(len(flat)) % length == 0))
    counts = np.diff(begins, append=len(flat)).tolist()
    return step_of_spans(range(len(begins)), [0] * len(begins), counts)


def require_segments(segments: NDArray[np.int64]) -> NDArray[np.int64]:
    """Refuse ids of documents, (B, T), that fall within a row: the same document would begin twice."""
    fallen = np.argwhere(np.diff(segments, axis=1) < 0)
    if fallen.size:
        row, place = fallen[0].tolist()
        before, after = segments[row, place : place + 2].tolist()
        raise InputError(
            f"segment {after} follows segment {before} in row {row} at token {place + 1}: number the documents of a "
            "row in their order"
        )
    return segments


@lru_cache(maxsize=64)
def step_of_sequences(batch: int, length: int) -> Step:
    """The step that reads so many sequences of one length from their beginning."""
    return step_of_spans(range(batch), [0] * batch, [length] * batch)
