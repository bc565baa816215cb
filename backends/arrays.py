"""This file holds what states of rows share that keep arrays: pages, or rows, along one axis of each."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from nanochat.errors import FormatError, MemoryShortageError
from nanochat.rows import PAGE, RowState, num_pages

__all__ = ["ArrayState"]

Array = TypeVar("Array")


class ArrayState(RowState[list[Array]], Generic[Array]):
    """A `RowState` with some arrays for each slot: of attention by page, of all others by row, along the first axis.

    Whoever derives from it sets `arrays`, and says how arrays of its library become NumPy's.
    """

    arrays: list[list[Array]]

    @property
    def page_bytes(self) -> int:
        return sum(map(_bytes_of_one, self._of_pages()))

    @property
    def row_bytes(self) -> int:
        return sum(map(_bytes_of_one, self._of_rows()))

    def read_row(self, row: int) -> list[NDArray[Any]]:
        pages = self._pages[row][: num_pages(self.length(row))]
        kept = [self._numpy(self._pages_of(array, pages)) for array in self._of_pages()]
        return [*kept, *map(self._numpy, self._save(row))]

    def write_row(self, length: int, arrays: Sequence[NDArray[Any]]) -> int:
        count = num_pages(length)
        if count > len(self._free):
            raise MemoryShortageError(
                f"{count} pages of {PAGE} positions are needed, and {len(self._free)} of {self.num_pages} are free: "
                "release rows, or make the state with more pages"
            )
        row = self.admit()
        self._grow(row, count)
        self._lengths[row] = length
        found = [(array.shape, array.dtype) for array in arrays]
        if found != [(array.shape, array.dtype) for array in self.read_row(row)]:
            self.release(row)
            raise FormatError(
                "the arrays are not those of such a state: use a cache with the model, backend and kv_cache that "
                "made it"
            )
        of_pages = self._of_pages()
        for array, values in zip(of_pages, arrays[: len(of_pages)], strict=True):
            self._set_pages(array, self._pages[row], self._array(values))
        self._restore(row, [self._array(values) for values in arrays[len(of_pages) :]])
        return row

    def _of_rows(self) -> list[Array]:
        pairs = zip(self.slots, self.arrays, strict=True)
        return [array for slot, arrays in pairs if slot.kind != "attention" for array in arrays]

    def _of_pages(self) -> list[Array]:
        pairs = zip(self.slots, self.arrays, strict=True)
        return [array for slot, arrays in pairs if slot.kind == "attention" for array in arrays]

    def _clear(self, row: int) -> None:
        for array in self._of_rows():
            array[row] = 0  # type: ignore[index]  # as of any array

    def _save(self, row: int) -> list[Array]:
        return [self._copied(array[row]) for array in self._of_rows()]  # type: ignore[index]  # the same

    def _restore(self, row: int, recurrent: list[Array]) -> None:
        for array, saved in zip(self._of_rows(), recurrent, strict=True):
            array[row] = saved  # type: ignore[index]  # the same

    def _copy_page(self, source: int, target: int) -> None:
        for array in self._of_pages():
            array[target] = array[source]  # type: ignore[index]  # the same

    def _pages_of(self, array: Any, pages: Sequence[int]) -> Array:
        """Some pages of an array."""
        found: Array = array[list(pages)]
        return found

    def _set_pages(self, array: Any, pages: Sequence[int], values: Array) -> None:
        """Write some pages of an array."""
        array[list(pages)] = values

    @abstractmethod
    def _copied(self, array: Array) -> Array:
        """A part of an array, copied."""

    @abstractmethod
    def _numpy(self, array: Array) -> NDArray[Any]:
        """The array in NumPy, of the same type."""

    @abstractmethod
    def _array(self, values: NDArray[Any]) -> Array:
        """Undo `_numpy`."""


def _bytes_of_one(array: Any) -> int:
    """Bytes of one page, or of one row."""
    return int(array.nbytes) // len(array)
