"""This file holds the writing of lessons: attempts are summarised, contrasted, and what they teach is merged.

References
----------
.. [1] "Training-Free Group Relative Policy Optimization", 2025, section 2. arXiv:2510.08191
"""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from nanochat.errors import InputError
from nanochat.experience.attempts import Attempts
from nanochat.experience.leaks import Secret
from nanochat.experience.library import Lesson
from nanochat.experience.operations import (
    MAX_LETTERS,
    Operation,
    apply,
    read_lessons,
    read_operations,
)
from nanochat.experience.writer import Writer
from nanochat.judge.judge import Judgement
from nanochat.rust.verdict import Verdict
from nanochat.text.messages import Message

__all__ = ["Counts", "contrast", "merge"]

_LOGGER = logging.getLogger(__name__)
Read = TypeVar("Read")

# An answer that is refused may be given again so often.
_RETRIES = 3
# Attempts of a problem that are summarised, of those that are right and of those that are not.
_MOST_OF_A_KIND = 2
_MOST_LETTERS = 1000
_ROLE = (
    "You help a language model that completes functions in Rust. It reads a list of short lessons before each "
    "function. You improve that list. Its weights do not change."
)
# What is said of an attempt. Results that are wrong or right are tests, and remain unsaid.
_FOUND: dict[Verdict, str] = {
    "open": "the function is never closed",
    "refused": "it is too long, or holds what such a function must not",
    "parse": "it is no Rust",
    "type": "it does not compile",
    "compiler-crash": "the compiler crashed",
    "compile-limit": "it takes too long to compile",
    "panic": "it panics for some arguments",
    "crash": "the program dies for some arguments",
    "limit": "it does not end for some arguments, or takes too much memory",
    "wrong": "it returns something wrong for some arguments",
    "pass": "it is right",
}
_WITH_MESSAGE: Collection[Verdict] = ("refused", "parse", "type")


@dataclass
class Counts:
    """What a batch took of a writer."""

    answers: int = 0
    refused: int = 0
    failed: int = 0


def contrast(
    writer: Writer,
    group: Attempts,
    lessons: Sequence[Lesson],
    *,
    most: int,
    secrets: Collection[Secret],
    counts: Counts,
) -> tuple[str, ...]:
    """What a problem teaches whose attempts are right and wrong: at most so many lessons; none if the writer fails."""
    told = []
    for number, one in enumerate(_told(group), 1):
        summary = _answer(writer, _summarise(group, one), counts)[:_MOST_LETTERS]
        told.append(f"Attempt {number}: {_FOUND[one.verdict]}. {summary}")
    listed = "\n".join(lesson.text for lesson in lessons) or "(none yet)"
    asked = (
        f"The function:\n\n{group.problem.prompt}\n\nAttempts to complete it:\n\n"
        + "\n".join(told)
        + "\n\n"
        f"Lessons that the model has read already:\n\n{listed}\n\n"
        f"Why are some attempts right and others not? Write at most {most} new lessons that would help with other "
        f"functions as well, each of at most {MAX_LETTERS} letters: no solution of this function, no arguments, no "
        "results. If there is nothing new to learn, write none. Answer with JSON alone:\n\n"
        '{"lessons": ["..."]}'
    )
    return (
        _read(
            writer,
            asked,
            lambda answer: read_lessons(answer, most=most, secrets=secrets),
            counts,
        )
        or ()
    )


def merge(
    writer: Writer,
    lessons: Sequence[Lesson],
    new: Sequence[str],
    *,
    batch: int,
    secrets: Collection[Secret],
    counts: Counts,
) -> tuple[Lesson, ...]:
    """The lessons with what is new among them, as the writer decides; as they were if it fails."""
    listed = "\n".join(f"{lesson.id}: {lesson.text}" for lesson in lessons) or "(none yet)"
    asked = (
        f"The list of lessons:\n\n{listed}\n\nNew lessons:\n\n"
        + "\n".join(f"- {text}" for text in new)
        + "\n\n"
        "Merge the new ones into the list. ADD what is new, UPDATE a lesson that a new one completes or corrects, KEEP "
        "one that a new one confirms, DELETE one that is wrong or says what another one does. Lessons that you do not "
        f"name stay. A lesson has at most {MAX_LETTERS} letters. Name each id at most once. Answer with JSON alone:\n\n"
        '{"operations": [{"operation": "ADD", "text": "..."}, {"operation": "UPDATE", "id": "L1", "text": "..."}, '
        '{"operation": "KEEP", "id": "L2"}, {"operation": "DELETE", "id": "L3"}]}'
    )
    operations: Sequence[Operation] | None = _read(
        writer,
        asked,
        lambda answer: read_operations(answer, lessons, secrets=secrets),
        counts,
    )
    return tuple(lessons) if operations is None else apply(lessons, operations, batch=batch)


def _told(group: Attempts) -> list[Judgement]:
    """Different attempts, some that are right and some that are not."""
    different = {(one.verdict, one.body, one.message): one for one in group.found}
    right = [one for one in different.values() if one.verdict == "pass"]
    others = [one for one in different.values() if one.verdict != "pass"]
    return [*right[:_MOST_OF_A_KIND], *others[:_MOST_OF_A_KIND]]


def _summarise(group: Attempts, one: Judgement) -> str:
    found = _FOUND[one.verdict]
    if one.verdict in _WITH_MESSAGE:
        found += f" ({one.message})"
    return (
        f"An attempt to complete a function:\n\n{group.problem.prompt}{one.body or ' ...'}\n\n"
        f"What a compiler and tests say: {found}.\n\n"
        "Say in at most three sentences what the attempt does, and why it is right or where it goes wrong."
    )


def _answer(writer: Writer, asked: str, counts: Counts) -> str:
    counts.answers += 1
    return writer.write([_message("user", f"{_ROLE}\n\n{asked}")]).strip()


def _read(writer: Writer, asked: str, read: Callable[[str], Read], counts: Counts) -> Read | None:
    """What is read of an answer; nothing if answers are refused until no retry is left."""
    # Not all chat templates know messages of the system.
    first = _message("user", f"{_ROLE}\n\n{asked}")
    messages = [first]
    for _ in range(_RETRIES + 1):
        counts.answers += 1
        answer = writer.write(messages)
        try:
            return read(answer)
        except InputError as error:
            reason = str(error)
        counts.refused += 1
        _LOGGER.info("an answer of the writer was refused: %s", reason)
        messages = [
            first,
            _message("assistant", answer or "(nothing)"),
            _message("user", f"That cannot be used: {reason}. Answer again, with JSON alone."),
        ]
    counts.failed += 1
    _LOGGER.warning(
        "the writer gave no answer that can be used, and %d retries did not help: nothing changes",
        _RETRIES,
    )
    return None


def _message(role: Literal["user", "assistant"], text: str) -> Message:
    return {"role": role, "content": text}
