"""This file holds the prefix cache: what texts began with, page by page, so that others need not read it again.

The pages form a tree: below a page are those that followed it in some text. A page is found by its tokens, which are
compared one by one, so two texts can never be taken for each other. Nothing else than time depends on what is found.

What a state remembers besides keys and values cannot go back. It is copied at some positions, and texts go on from
these only; see `Prefixes.stride`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.rows import PAGE, RowState

__all__ = ["COPIES", "Beginning", "Prefixes", "shared_length"]

# Copies of what rows remember besides keys and values that are kept for each row, unless somebody says how many.
COPIES = 2
_STRIDE = 4 * PAGE


@dataclass(frozen=True, kw_only=True, eq=False)
class Beginning:
    """The first `length` positions of a row: their pages, and what it remembered there besides."""

    length: int
    pages: tuple[int, ...] = ()
    recurrent: Any = None


@dataclass(eq=False, kw_only=True)
class _Page:
    """A page of the state, with the tokens in it and what followed it; the roots have none.

    Of two pages below the same one, neither begins with the tokens of the other.
    """

    tokens: tuple[int, ...] = ()
    number: int = -1
    above: "_Page | None" = None
    below: dict[tuple[int, ...], "_Page"] = field(default_factory=dict)
    # By the number of tokens in the page after which it was copied.
    recurrent: dict[int, Any] = field(default_factory=dict)


class Prefixes:
    """The pages of a state that are kept for texts to come.

    Parameters
    ----------
    state : RowState
        Whose pages these are. It is asked for pages before they run out: see `forget`.
    copies : int
        Most copies of what rows remember besides keys and values, each as large as that of a row.
    """

    def __init__(self, state: RowState[Any], *, copies: int) -> None:
        self._state = state
        self._copies = copies
        # Texts with another salt shall not learn by timing what these hold.
        self._roots: dict[str, _Page] = {}
        # What was used last is last. A page is used with all above it, which come after it: the first has none below.
        self._pages: OrderedDict[_Page, str] = OrderedDict()
        self._copied: OrderedDict[tuple[_Page, int], None] = OrderedDict()

    @property
    def num_pages(self) -> int:
        """The pages that are kept."""
        return len(self._pages)

    @property
    def stride(self) -> int:
        """The positions from one at which a long prompt should be kept to the next."""
        return PAGE if self._state.can_go_back else _STRIDE

    def find(self, ids: Sequence[int], *, salt: str) -> Beginning:
        """The longest beginning of some tokens that is kept; empty if there is none."""
        page = self._roots.get(salt)
        pages: list[int] = []
        best = Beginning(length=0)
        length = 0
        while page is not None:
            tokens = tuple(ids[length : length + PAGE])
            below, common = page.below.get(tokens), len(tokens)
            if below is None:
                below, common = _nearest(page, tokens)
            if below is None or not common:
                break
            pages.append(below.number)
            if self._state.can_go_back:
                best = Beginning(length=length + common, pages=tuple(pages))
            elif places := [place for place in below.recurrent if place <= common]:
                place = max(places)
                best = Beginning(
                    length=length + place, pages=tuple(pages), recurrent=below.recurrent[place]
                )
            page, length = (below, length + PAGE) if common == PAGE else (None, length)
        return best

    def use(self, ids: Sequence[int], beginning: Beginning, *, salt: str) -> None:
        """Note that a text begins with what was found, which is therefore forgotten last."""
        page, path = self._roots.get(salt), []
        for start in range(0, beginning.length, PAGE):
            assert page is not None
            tokens = tuple(ids[start : min(start + PAGE, beginning.length)])
            page = page.below.get(tokens) or _nearest(page, tokens)[0]
            assert page is not None
            path.append(page)
        self._touch(path)
        place = (path[-1], (beginning.length - 1) % PAGE + 1)
        if place in self._copied:
            self._copied.move_to_end(place)

    def keep(self, ids: Sequence[int], row: int, *, salt: str, whole: bool) -> None:
        """Keep what a row has read, which are these tokens: all, or full pages only, that the row writes no more."""
        page = self._roots.setdefault(salt, _Page())
        path: list[_Page] = []
        for start, number in zip(range(0, len(ids), PAGE), self._state.pages(row), strict=True):
            tokens = tuple(ids[start : start + PAGE])
            if len(tokens) < PAGE and not whole:
                break
            page = page.below.get(tokens) or self._added(page, tokens, number, salt)
            path.append(page)
        self._touch(path)
        is_here = path and (len(ids) - 1) // PAGE == len(path) - 1
        if is_here and not self._state.can_go_back and self._copies:
            self._copy(path[-1], (len(ids) - 1) % PAGE + 1, row)
        if not page.below and page.above is None:
            del self._roots[salt]

    def forget(self) -> bool:
        """Give up the page that was not used for longest; whether there was one."""
        if not self._pages:
            return False
        page, salt = self._pages.popitem(last=False)
        above = page.above
        assert above is not None
        assert not page.below
        del above.below[page.tokens]
        for place in page.recurrent:
            del self._copied[page, place]
        self._state.let_go([page.number])
        if above.above is None and not above.below:
            del self._roots[salt]
        return True

    def _touch(self, path: Sequence[_Page]) -> None:
        for page in reversed(path):
            self._pages.move_to_end(page)

    def _added(self, page: _Page, tokens: tuple[int, ...], number: int, salt: str) -> _Page:
        """The page below another one that begins with these tokens, made or made longer if need be."""
        near, common = _nearest(page, tokens)
        if near is not None and common == len(tokens):
            return near
        self._state.hold([number])
        if near is not None and common == len(near.tokens):
            # The same, with more behind it.
            self._state.let_go([near.number])
            del page.below[near.tokens]
            near.tokens, near.number = tokens, number
        else:
            near = _Page(tokens=tokens, number=number, above=page)
            self._pages[near] = salt
        page.below[tokens] = near
        return near

    def _copy(self, page: _Page, place: int, row: int) -> None:
        if (page, place) not in self._copied:
            while len(self._copied) >= self._copies:
                (old, at), _ = self._copied.popitem(last=False)
                del old.recurrent[at]
            page.recurrent[place] = self._state.recurrent(row)
            self._copied[page, place] = None
        self._copied.move_to_end((page, place))


def _nearest(page: _Page, tokens: tuple[int, ...]) -> tuple[_Page | None, int]:
    """The page below that begins with most of some tokens, and how many these are."""
    best, longest = None, 0
    for below in page.below.values():
        common = shared_length(below.tokens, tokens)
        if common > longest:
            best, longest = below, common
    return best, longest


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common.

    >>> shared_length([1, 2, 3], (1, 2, 4, 5))
    2
    """
    length = min(len(left), len(right))
    # Most pairs differ at once, or are the same.
    for start in range(0, length, PAGE):
        end = min(start + PAGE, length)
        if left[start] == right[start] and tuple(left[start:end]) == tuple(right[start:end]):
            continue
        return start + next(i for i in range(end - start) if left[start + i] != right[start + i])
    return length
