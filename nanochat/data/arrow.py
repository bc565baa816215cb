"""This file holds the reading of what Apache Arrow reads: Parquet, and lines that zstd has compressed."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import pyarrow
from pyarrow import parquet

from nanochat.data.records import Record
from nanochat.errors import DataError

__all__ = ["RowGroup", "opened_zstd", "row_groups"]

# Of a row group, whose rows are made into Python's objects so many at a time.
_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Rows of a Parquet file, the first of which has the number `first`; other columns than these are empty in them."""

    name: str
    path: Path
    first: int
    group: int
    columns: tuple[str, ...]
    size: int

    def records(self, dropped: Counter[str]) -> Iterator[Record]:  # noqa: ARG002
        """See `nanochat.data.records.Chunk`."""
        number = self.first
        try:
            with parquet.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                wanted = [name for name in names if name in self.columns]
                for rows in file.iter_batches(_ROWS, row_groups=[self.group], columns=wanted):
                    for found in rows.to_pylist():
                        place = f"{self.path}, row {number + 1}"
                        fields = {**dict.fromkeys(names), **found}
                        yield Record(name=f"{self.name}#{number}", place=place, fields=fields)
                        number += 1
        # Of bytes that are no text it is a ValueError.
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise _damaged(self.path, error) from error


def row_groups(name: str, path: Path, columns: tuple[str, ...]) -> Iterator[RowGroup]:
    """The parts of a Parquet file, of which these columns are read."""
    try:
        with parquet.ParquetFile(path) as file:
            found = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in found]
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(path, error) from error
    first = 0
    for group, (rows, size) in enumerate(sizes):
        yield RowGroup(name=name, path=path, first=first, group=group, columns=columns, size=size)
        first += rows


def opened_zstd(path: Path) -> BufferedReader:
    """A file of lines that zstd has compressed."""
    try:
        return BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    except (OSError, pyarrow.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error).partition("\n")[0]
    return DataError(f"{path}: {reason}; copy it again or leave it out")
