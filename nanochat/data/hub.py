"""This file holds the reading of data sets of the Hugging Face Hub, as they come: nothing of them is kept on disk."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi

from nanochat.data.records import Record
from nanochat.errors import DataError

__all__ = ["HubRows", "hub_rows", "pinned"]

_ROWS = 256
# Seconds.
_TIMEOUT = 30


@dataclass(frozen=True, kw_only=True)
class HubRows:
    """Rows of a data set, the first of which has the number `first`."""

    name: str
    first: int
    rows: tuple[Mapping[str, Any], ...]

    @property
    def size(self) -> int:
        """See `nanochat.data.records.Chunk`."""
        texts = (each for row in self.rows for each in row.values() if isinstance(each, str))
        return sum(map(len, texts))

    def records(self, dropped: Counter[str]) -> Iterator[Record]:  # noqa: ARG002
        """See `nanochat.data.records.Chunk`."""
        for number, row in enumerate(self.rows, self.first):
            name = f"{self.name}#{number}"
            yield Record(name=name, place=f"{self.name}, row {number + 1}", fields=row)


def pinned(source: str, revision: str | None) -> str | None:
    """The commit that a data set, ``org/name`` or ``org/name:configuration``, is at; none if it is a directory here.

    Raises
    ------
    DataError
        If there is no such data set, or no network.
    """
    name, _, _ = source.partition(":")
    # Nothing would be the directory that this runs in.
    if name and Path(name).is_dir():
        if revision:
            raise DataError(
                f"hub:{source} is a directory, without revisions: leave out {revision!r:.80}"
            )
        return None
    try:
        return HfApi().dataset_info(name, revision=revision, timeout=_TIMEOUT).sha
    # The client's exceptions are another library's in every major version.
    except Exception as error:
        at = f" at revision {revision}" if revision else ""
        raise DataError(
            f"hub:{source}: {_first_line(error)}: the data set must be on the Hub{at} and the network be there; "
            "correct the name, or pass files"
        ) from error


def hub_rows(source: str, commit: str | None, *, split: str = "train") -> Iterator[HubRows]:
    """Stream the rows of a split of a data set.

    Raises
    ------
    DataError
        If there is no such data set or split, or no network.
    """
    name, _, configuration = source.partition(":")
    try:
        rows = iter(
            datasets.load_dataset(
                name, configuration or None, split=split, streaming=True, revision=commit
            )
        )
        first = 0
        while part := tuple(itertools.islice(rows, _ROWS)):
            yield HubRows(name=f"hub:{source}", first=first, rows=part)
            first += len(part)
    except Exception as error:
        raise DataError(
            f"hub:{source}: {_first_line(error)}: pass a data set with text in its split {split}, as "
            "hub:org/name or hub:org/name:configuration"
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
