"""This file holds the reading of sets of problems that others made: lines of JSON, each of them a row of fields."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanochat.errors import FormatError

__all__ = ["Row", "read_rows"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row's fields, and its place for messages."""

    fields: dict[str, object]
    place: str

    def text(self, *names: str) -> str:
        """The text of a field, or of the first of several of which one must be there.

        Raises
        ------
        FormatError
            If none is there, or it is no text.
        """
        for name in names:
            if name in self.fields:
                value = self.fields[name]
                if isinstance(value, str):
                    return value
                raise FormatError(f"{self.place}: {name} is {value!r:.40}: write a text")
        wanted = " or ".join(names)
        raise FormatError(
            f"{self.place}: there is no field {wanted}: the row has {', '.join(self.fields)}"
        )

    def has(self, names: Sequence[str]) -> bool:
        """Whether all of some fields are there."""
        return all(name in self.fields for name in names)


def read_rows(text: str, name: str) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines.

    Raises
    ------
    FormatError
        If a line is no JSON object.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise FormatError(
                f"{place}: no JSON: {error}; write one object on each line"
            ) from error
        if not isinstance(fields, dict):
            raise FormatError(f"{place}: {line:.40} is no JSON object: write one on each line")
        yield Row(fields=fields, place=place)
