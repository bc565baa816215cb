"""This file holds what a writer may do with a library: lessons that it proposes, and how they are merged, as JSON.

A writer is a language model, so nothing is taken that is not exactly as it was asked for. A refusal is an `InputError`
whose message is written for the writer, who may try again.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from nanochat.errors import InputError
from nanochat.experience.leaks import Secret, leak
from nanochat.experience.library import Lesson

__all__ = ["MAX_LETTERS", "Operation", "apply", "read_lessons", "read_operations"]

Kind = Literal["ADD", "UPDATE", "DELETE", "KEEP"]
# Of a lesson: two or three sentences.
MAX_LETTERS = 400
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n\s*```", re.DOTALL)


@dataclass(frozen=True)
class Operation:
    """One change: the text is a new one, and empty where none is needed; an added lesson has no id yet."""

    kind: Kind
    id: str = ""
    text: str = ""


def read_lessons(answer: str, *, most: int, secrets: Collection[Secret]) -> tuple[str, ...]:
    """The lessons in ``{"lessons": ["..."]}``, at most so many.

    Raises
    ------
    InputError
        If the answer is anything else, or a lesson is not allowed.
    """
    lessons = _value(answer, "lessons")
    if len(lessons) > most:
        raise InputError(f"{len(lessons)} lessons are too many: write at most {most}")
    return tuple(_text(lesson, secrets) for lesson in lessons)


def read_operations(
    answer: str, lessons: Sequence[Lesson], *, secrets: Collection[Secret]
) -> tuple[Operation, ...]:
    """The changes in ``{"operations": [{"operation": "UPDATE", "id": "L1", "text": "..."}]}``.

    Raises
    ------
    InputError
        If the answer is anything else, names a lesson that is not there or one twice, or a text is not allowed.
    """
    known = [lesson.id for lesson in lessons]
    operations = [_operation(row, known, secrets) for row in _value(answer, "operations")]
    named = [operation.id for operation in operations if operation.id]
    for id in named:
        if named.count(id) > 1:
            raise InputError(f"there are two operations on {id}: write one for each lesson")
    return tuple(operations)


def apply(
    lessons: Sequence[Lesson], operations: Sequence[Operation], *, batch: int
) -> tuple[Lesson, ...]:
    """The lessons after the changes, with new numbers; those of which no operation speaks stay as they are.

    Examples
    --------
    >>> old = [Lesson(id="L1", text="a"), Lesson(id="L2", text="b")]
    >>> new = apply(old, [Operation("DELETE", "L1"), Operation("ADD", text="c")], batch=2)
    >>> [(lesson.id, lesson.text, lesson.batch) for lesson in new]
    [('L1', 'b', 1), ('L2', 'c', 2)]
    """
    left = {lesson.id: lesson for lesson in lessons}
    for operation in operations:
        if operation.kind == "DELETE":
            del left[operation.id]
        elif operation.id:
            old = left[operation.id]
            text = operation.text or old.text
            left[operation.id] = replace(old, text=text, uses=old.uses + 1, batch=batch)
    added = [operation.text for operation in operations if operation.kind == "ADD"]
    every = [*left.values(), *(Lesson(id="", text=text, batch=batch) for text in added)]
    return tuple(replace(lesson, id=f"L{number}") for number, lesson in enumerate(every, 1))


def _operation(row: object, known: Sequence[str], secrets: Collection[Secret]) -> Operation:
    if not isinstance(row, dict) or row.get("operation") not in get_args(Kind):
        raise InputError(
            f'{_shown(row)} is no operation: write {{"operation": ...}} with one of {", ".join(get_args(Kind))}'
        )
    kind = cast(Kind, row["operation"])
    wanted = {"ADD": {"text"}, "UPDATE": {"id", "text"}, "DELETE": {"id"}, "KEEP": {"id"}}[kind]
    if row.keys() != {"operation", *wanted}:
        raise InputError(
            f"{_shown(row)} is no {kind}: give it {' and '.join(sorted(wanted))}, and nothing else"
        )
    if "id" in wanted and row["id"] not in known:
        there = f"one of {', '.join(known)}" if known else "none, for there are no lessons yet"
        raise InputError(f"there is no lesson {_shown(row['id'])}: name {there}")
    text = _text(row["text"], secrets) if "text" in wanted else ""
    return Operation(kind, str(row.get("id", "")), text)


def _value(answer: str, name: str) -> Sequence[object]:
    """The list that is all of the answer's JSON object; other words and a fence may stand around that."""
    fenced = _FENCED.findall(answer)
    text = fenced[-1] if fenced else answer[answer.find("{") : answer.rfind("}") + 1]
    try:
        found: Any = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the answer holds no JSON object ({error}): write one, with nothing around it"
        ) from error
    if not isinstance(found, dict) or [*found] != [name] or not isinstance(found[name], list):
        raise InputError(f'{_shown(found)} is not as asked for: write {{"{name}": [...]}}')
    return cast(Sequence[object], found[name])


def _once(pairs: Sequence[tuple[str, object]]) -> Mapping[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InputError(f"{_shown(found)} names a field twice: name each once")
    return found


def _text(value: object, secrets: Collection[Secret]) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text or not text.isprintable():
        raise InputError(f"{_shown(value)} is no lesson: write a sentence")
    if len(text) > MAX_LETTERS:
        raise InputError(
            f"{_shown(text)} has {len(text)} letters: write at most {MAX_LETTERS}, so leave out what matters least"
        )
    if found := leak(text, secrets):
        raise InputError(
            f"{_shown(text)} tells {found}: write what helps with other functions, too, without values of tests and "
            "without a whole solution"
        )
    return text


def _shown(value: object) -> str:
    return json.dumps(value)[:80]
