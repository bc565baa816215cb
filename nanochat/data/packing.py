"""This file holds best-fit packing: documents in sequences of one length, whole wherever they fit.

Documents that are longer than a sequence are cut into pieces of its length, of which only the last is shorter. Pieces
are placed in order of their size, the largest first, each where it leaves the least room.

References
----------
.. [1] H. Ding et al., "Fewer Truncations Improve Language Modeling", 2024, section 3. arXiv:2404.10830
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Packed", "pack"]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Pieces of a stream, sequence by sequence: those of sequence ``i`` are numbers ``firsts[i]`` to ``firsts[i + 1]``.

    Parameters
    ----------
    starts, sizes : int64 arrays, shape (pieces,)
        Where in the stream each begins, and its tokens.
    firsts : int64 array, shape (sequences + 1,)
        The first piece of each sequence, and the number of all.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    firsts: NDArray[np.int64]

    def pieces(self, sequence: int) -> list[tuple[int, int]]:
        """Start and size of each piece of a sequence."""
        part = slice(self.firsts[sequence], self.firsts[sequence + 1])
        return list(zip(self.starts[part].tolist(), self.sizes[part].tolist(), strict=True))


def pack(
    document_starts: NDArray[np.int64], num_tokens: int, length: int, *, with_rest: bool = True
) -> Packed:
    """Place the documents of a stream, which end where the next one starts, in sequences of `length` tokens.

    Without `with_rest`, what is longer than a sequence is cut to it.

    Examples
    --------
    >>> packed = pack(np.array([0, 3, 8, 10]), num_tokens=23, length=6)
    >>> [packed.pieces(sequence) for sequence in range(len(packed.firsts) - 1)]
    [[(10, 6)], [(16, 6)], [(3, 5), (22, 1)], [(0, 3), (8, 2)]]
    """
    sizes = np.diff(document_starts, append=num_tokens)
    if not with_rest:
        sizes = np.minimum(sizes, length)
    counts = -(-sizes // length)
    before = np.cumsum(counts) - counts
    number = np.arange(counts.sum()) - np.repeat(before, counts)
    starts = np.repeat(document_starts, counts) + number * length
    sizes = np.minimum(length, np.repeat(sizes, counts) - number * length)
    rows, offsets = _best_fit(sizes, length)
    order = np.lexsort((offsets, rows))
    firsts = np.searchsorted(rows[order], np.arange(rows.max() + 2))
    return Packed(starts=starts[order], sizes=sizes[order], firsts=firsts)


def _best_fit(sizes: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row of each piece, and where in it the piece begins."""
    rows, offsets = np.empty_like(sizes), np.empty_like(sizes)
    ascending = np.argsort(sizes, kind="stable")
    bounds = np.searchsorted(sizes[ascending], np.arange(length + 2))
    # Rows by the room that they have left, and how many there are of each.
    rows_by_room: list[list[NDArray[np.int64]]] = [[] for _ in range(length + 1)]
    counts = np.zeros(length + 1, np.int64)
    num_rows = 0

    def put(room: int, some: NDArray[np.int64]) -> None:
        if room and len(some):
            rows_by_room[room].append(some)
            counts[room] += len(some)

    for size in range(length, 0, -1):
        pieces = ascending[bounds[size] : bounds[size + 1]]
        while len(pieces):
            wide = np.flatnonzero(counts[size:])
            room = size + int(wide[0]) if len(wide) else length
            # A row that has taken one piece has less room than the others, and takes the next of this size, too.
            each = room // size
            needed = -(-len(pieces) // each)
            if len(wide):
                found = np.concatenate(rows_by_room[room])
                rows_by_room[room], counts[room] = [], 0
                put(room, found[needed:])
                found = found[:needed]
            else:
                found = np.arange(num_rows, num_rows + needed)
                num_rows += needed
            placed = min(len(pieces), each * len(found))
            rows[pieces[:placed]] = np.repeat(found, each)[:placed]
            offsets[pieces[:placed]] = length - room + size * (np.arange(placed) % each)
            in_last = placed - each * (len(found) - 1)
            put(room - size * each, found[:-1])
            put(room - size * in_last, found[-1:])
            pieces = pieces[placed:]
    return rows, offsets
