"""This file holds a weighted mixture of prepared directories, whose batches are a pure function of their number, too.

The samples of a run come in blocks of a thousand, each with exact quotas of the sources in an order of its own. So the
number of a sample within its source follows from its place, and nothing need be remembered.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from nanochat.data.batch import Batch, Layout
from nanochat.data.shards import Shards
from nanochat.data.windows import epoch_order
from nanochat.errors import ConfigError, FormatError, did_you_mean

__all__ = ["Mixture"]

_BLOCK = 1000


class Mixture:
    """One split of several sources, or of one.

    Parameters
    ----------
    sources : dict of str to Shards
        By their names, of one tokenizer; a single one may have the name "".
    seed : int
        Chooses the order of the sources; each has its own order of sequences.

    Attributes
    ----------
    tokenizer : Tokenizer
        The one that wrote the tokens.
    num_tokens : int
        Of all sources together.
    """

    def __init__(self, sources: Mapping[str, Shards], *, seed: int = 0) -> None:
        self.sources = dict(sources)
        first = next(iter(self.sources.values()))
        for other in self.sources.values():
            if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
                raise FormatError(
                    f"{other.directory} has another tokenizer than {first.directory}: prepare it again with "
                    f"--tokenizer {first.directory}"
                )
        self.tokenizer = first.tokenizer
        self.num_tokens = sum(source.num_tokens for source in self.sources.values())
        self._seed = seed

    def __str__(self) -> str:
        return ", ".join(str(source.directory) for source in self.sources.values())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what is read: equal for the same tokens by the same names."""
        found = {name: source.fingerprint for name, source in self.sources.items()}
        if len(found) == 1:
            return next(iter(found.values()))
        parts = "".join(f"{name}\0{found[name]}\0" for name in sorted(found))
        return hashlib.sha256(parts.encode()).hexdigest()

    def require(self, layout: Layout) -> None:
        """Refuse a layout of which no sequence can be made, or a mixture of other sources."""
        known = [name for name in self.sources if name]
        weights = dict(layout.mixture)
        for name in weights:
            if not known:
                raise ConfigError(
                    f"data.mixture names {name!r:.80}, but the data have no names: pass --data NAME=DIRECTORY for each"
                )
            if name not in known:
                raise ConfigError(
                    f"data.mixture names {name!r:.80}, which is none of the data{did_you_mean(name, known)}: choose "
                    f"of {', '.join(known)}, or pass --data {name}=DIRECTORY, too"
                )
        if weights and not any(weights.values()):
            raise ConfigError(f"data.mixture={weights!r:.80}: one weight must be more than 0")
        for source in self.sources.values():
            source.num_sequences(layout)

    def quotas(self, layout: Layout) -> dict[str, int]:
        """How many of each thousand samples come from each source: one at least, unless its weight is 0."""
        weights = dict(layout.mixture) or {
            name: float(source.num_tokens) for name, source in self.sources.items()
        }
        shares = _quotas(tuple(weights.get(name, 0.0) for name in self.sources))
        return dict(zip(self.sources, shares, strict=True))

    def batch(self, step: int, batch_size: int, layout: Layout, *, order: int = 0) -> Batch:
        """Return the batch of one training step; see :meth:`nanochat.data.shards.Shards.batch`."""
        sources = list(self.sources.values())
        if len(sources) == 1:
            return sources[0].batch(step, batch_size, layout, order=order)
        quotas = tuple(self.quotas(layout).values())
        numbers: list[list[int]] = [[] for _ in sources]
        rows: list[list[int]] = [[] for _ in sources]
        for row, sample in enumerate(range(step * batch_size, (step + 1) * batch_size)):
            block, place = divmod(sample, _BLOCK)
            chosen, before = _block(quotas, (self._seed, block, order, len(sources)))
            source = int(chosen[place])
            numbers[source].append(block * quotas[source] + int(before[place]))
            rows[source].append(row)
        parts = [
            source.sequences(some, layout, order)
            for source, some in zip(sources, numbers, strict=True)
            if some
        ]
        return _joined(parts, np.argsort(np.concatenate([each for each in rows if each])))

    def num_in_order(self, layout: Layout) -> int:
        """Return the number of sequences of :meth:`in_order`."""
        return sum(source.num_in_order(layout) for source in self.sources.values())

    def turns(self, batch_size: int, layout: Layout) -> list[tuple[str, int]]:
        """Return the source and the number of rows of each batch of :meth:`in_order`."""
        found = []
        for name, source in self.sources.items():
            rows = source.num_in_order(layout)
            starts = range(0, rows, batch_size)
            found += [(s / rows, name, min(batch_size, rows - s)) for s in starts]
        return [(name, rows) for _, name, rows in sorted(found)]

    def in_order(
        self, batch_size: int, layout: Layout
    ) -> Iterator[tuple[str, Batch, NDArray[np.int64]]]:
        """Yield all sources once, always in the same order; see :meth:`nanochat.data.shards.Shards.in_order`.

        A batch is of one source, whose name comes with it. Each has a first one before any has a second, and from then
        on they come as evenly as their sizes allow: the beginning has as much of each as the whole.
        """
        batches = {
            name: source.in_order(batch_size, layout) for name, source in self.sources.items()
        }
        for name, _ in self.turns(batch_size, layout):
            yield (name, *next(batches[name]))


@functools.lru_cache(maxsize=16)
def _quotas(weights: tuple[float, ...]) -> tuple[int, ...]:
    """A thousand by these weights: whole numbers that lie nearest, by the largest remainders."""
    exact = np.array(weights) / sum(weights) * _BLOCK
    found = np.where(exact > 0, np.maximum(1, np.floor(exact)), 0).astype(np.int64)
    # What is left over, or missing because small ones have one.
    while (left := _BLOCK - int(found.sum())) != 0:
        found[np.argmax(exact - found) if left > 0 else np.argmax(found)] += np.sign(left)
    return tuple(found.tolist())


@functools.lru_cache(maxsize=4)
def _block(
    quotas: Sequence[int], seeds: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The source of each sample of a block, and how many of the same source stand before it."""
    places = epoch_order(_BLOCK, seeds)
    chosen, before = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    for source, (first, end) in enumerate(pairwise(np.cumsum([0, *quotas]).tolist())):
        chosen[places[first:end]] = source
        before[np.sort(places[first:end])] = np.arange(end - first)
    return chosen, before


def _joined(parts: Sequence[Batch], order: NDArray[np.int64]) -> Batch:
    """The rows of several batches, in an order."""

    def rows(arrays: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.concatenate(arrays)[order]

    segments = [part.segments for part in parts if part.segments is not None]
    return Batch(
        inputs=rows([part.inputs for part in parts]),
        targets=rows([part.targets for part in parts]),
        segments=rows(segments) if segments else None,
    )
