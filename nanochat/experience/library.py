"""This file holds the library of what was learnt: lessons and examples, their file, and which lessons leave first.

A library belongs to no model: it says which model and which problems it was learnt from, and any model may read it.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat.errors import FormatError, InputError, VersionError
from nanochat.files import atomic_write, read_bytes

__all__ = ["Example", "Lesson", "Library", "kept", "lines_of", "read_library"]

_FORMAT, _VERSION = "nanochat-experience", 1
_MAX_BYTES = 64 * 2**20
_BY = "nanochat learn"
_HEADING = "// What was learnt from other functions:\n"
# The fields of what a file holds.
_LESSON = {"id": str, "text": str, "uses": int, "batch": int}
_EXAMPLE = {"problem": str, "family": str, "prompt": str, "body": str}
_LIBRARY = {
    "learnt_from": dict,
    "budget": int,
    "lessons": list,
    "examples": list,
    "batches": list,
}


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A sentence or two that help to write other functions.

    Parameters
    ----------
    id : str
        Its name among the lessons of a library, such as ``L3``.
    text : str
        One line.
    uses : int
        How often a writer has written, changed or confirmed it.
    batch : int
        In which batch it was last used so, from 1.
    """

    id: str
    text: str
    uses: int = 1
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class Example:
    """A function that passes.

    Parameters
    ----------
    problem, family : str
        See `nanochat.problems.problem.Problem`.
    prompt, body : str
        Its text up to the brace that opens the body, and the rest with the closing brace.
    """

    problem: str
    family: str
    prompt: str
    body: str


@dataclass(frozen=True, kw_only=True)
class Library:
    """What was learnt.

    Parameters
    ----------
    learnt_from : mapping
        The problems, the model, and how it was drawn from: all that the rest follows from.
    budget : int
        Most tokens that may stand before a prompt, in the tokenizer of whoever reads them.
    lessons, examples : tuple
        What may stand there.
    batches : tuple of mapping
        What came of each batch of problems, as many as were learnt from.
    """

    learnt_from: Mapping[str, object]
    budget: int
    lessons: tuple[Lesson, ...] = ()
    examples: tuple[Example, ...] = ()
    batches: tuple[Mapping[str, object], ...] = ()

    @property
    def identity(self) -> str:
        """The SHA-256 of all that a model may read of it."""
        lessons = [lesson.text for lesson in self.lessons]
        shown = [self.budget, lessons, [asdict(example) for example in self.examples]]
        return hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the library, or leave what stood there.

        Raises
        ------
        SaveError
            If it cannot be written.
        """
        content = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        atomic_write(path, f"{json.dumps(content, indent=1)}\n".encode())


def read_library(path: Path) -> Library:
    """Read a file that `Library.save` has written.

    Raises
    ------
    InputError
        If there is none.
    FormatError
        If it is damaged, or something else.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}: pass one that `{_BY}` has written")
    data = read_bytes(path, limit=_MAX_BYTES)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is no JSON ({error}): {_again()}") from error
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise FormatError(f"{path} is not of the format {_FORMAT!r}: {_again()}")
    if (version := content.pop("version", None)) != _VERSION:
        raise VersionError(
            f"{path} is of version {version!r} of its format, and this package knows {_VERSION}: update nanochat"
        )
    found = _entry(content, _LIBRARY, str(path))
    for number, batch in enumerate(found["batches"], 1):
        _object(batch, f"{path}: number {number} of batches")
    lessons = [Lesson(**row) for row in _entries(found, "lessons", _LESSON, path)]
    if len({lesson.id for lesson in lessons}) < len(lessons):
        raise FormatError(f"{path}: two lessons have the same id: {_again()}")
    return Library(
        learnt_from=found["learnt_from"],
        budget=found["budget"],
        lessons=tuple(lessons),
        examples=tuple(Example(**row) for row in _entries(found, "examples", _EXAMPLE, path)),
        batches=tuple(found["batches"]),
    )


def lines_of(lessons: Iterable[Lesson]) -> str:
    """Lessons as a model reads them in front of a function, which is as comments of Rust; empty if there are none."""
    # A line end within a lesson would end its comment.
    lines = [f"// - {' '.join(lesson.text.split())}\n" for lesson in lessons]
    return _HEADING + "".join(lines) + "\n" if lines else ""


def kept(
    lessons: Sequence[Lesson], *, budget: int, count: Callable[[str], int]
) -> tuple[Lesson, ...]:
    """The lessons that fit a budget of tokens, in their order.

    Those that were used least leave first, and of equals the one whose last use is the longest ago, and then the first.

    Parameters
    ----------
    count : callable
        How many tokens a text has.
    """
    left = [*lessons]
    for leaving in sorted(lessons, key=lambda lesson: (lesson.uses, lesson.batch)):
        if count(lines_of(left)) <= budget:
            break
        left.remove(leaving)
    return tuple(left)


def _entries(
    found: Mapping[str, Any], name: str, wanted: Mapping[str, type], path: Path
) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(found[name], 1):
        yield _entry(row, wanted, f"{path}: number {number} of {name}")


def _entry(row: object, wanted: Mapping[str, type], where: str) -> dict[str, Any]:
    """The fields of an entry, each there and of its type."""
    fields = _object(row, where)
    for name in sorted(fields.keys() ^ wanted.keys()):
        has = "no" if name in wanted else "an unknown"
        raise FormatError(f"{where} has {has} field {name!r}: {_again()}")
    for name, kind in wanted.items():
        value = fields[name]
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            what = {int: "count", str: "text", list: "list", dict: "JSON object"}[kind]
            raise FormatError(f"{where}: {name} is {value!r:.40}, and no {what}: {_again()}")
    return fields


def _object(row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise FormatError(f"{where} is {row!r:.40}, and no JSON object: {_again()}")
    return row


def _again() -> str:
    return f"learn again, or pass a file that `{_BY}` has written"
