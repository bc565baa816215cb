"""This file holds calls of tools in an answer: how they are told from its text as it grows.

An answer that is kept to a grammar of `nanochat.text.call_grammar` has its calls behind its text, and nothing behind
them.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any, NamedTuple

from nanochat.text.call_grammar import Function
from nanochat.text.call_shape import BLANK, NAME, CallShape
from nanochat.text.call_values import Schemas, argument_schema, as_json
from nanochat.text.held import overlap

__all__ = ["CallPart", "CallSplitter", "Calls", "calls_of"]

_TEXTS = frozenset(["string"])
# Reads characters that are sent to it; what it returns.
_Reads = Generator[None, str, None]


class CallPart(NamedTuple):
    """What is new of call `number`: its name, with which it begins, or more of its arguments, which are JSON."""

    number: int
    name: str | None
    arguments: str


@dataclass(frozen=True, kw_only=True)
class Calls:
    """How calls are told from the text of an answer.

    Parameters
    ----------
    shape : CallShape
        How they are written.
    begin_answers : bool
        Whether there are calls only where the answer begins, also if they have a mark.
    types : mapping
        The types of each parameter of each function, where arguments are no JSON.
    """

    shape: CallShape
    begin_answers: bool = False
    types: Mapping[str, Mapping[str, frozenset[str]]] = field(default_factory=dict)


def calls_of(
    shape: CallShape, functions: Sequence[Function], *, content: Mapping[str, Any] | None = None
) -> Calls:
    """How calls of these functions are told from text, or from what is kept to a JSON schema, which may hold a mark."""
    types: dict[str, dict[str, frozenset[str]]] = {}
    if shape.parameters is not None:
        for function in functions:
            root = argument_schema(function.parameters)
            schemas, properties = Schemas(root), root.get("properties", {})
            types[function.name] = {key: schemas.types(each) for key, each in properties.items()}
    return Calls(shape=shape, begin_answers=content is not None, types=types)


class CallSplitter:
    r"""Tells calls from the answer in a growing text; what may begin one is held back until more is known.

    Examples
    --------
    >>> shape = CallShape(mark="<c>", opening="<c>", middle=" ", close="</c>", between="<c>", end="")
    >>> splitter = CallSplitter(Calls(shape=shape))
    >>> splitter.push("Yes. <")
    ('Yes. ', ())
    >>> splitter.push("c>now {}</c>")
    ('', (CallPart(number=0, name='now', arguments='{}'),))
    """

    def __init__(self, calls: Calls) -> None:
        self._shape, self._types = calls.shape, calls.types
        self._begins_answers = calls.begin_answers or not calls.shape.mark
        self._held = ""
        # Whether no text has been handed out.
        self._is_fresh = True
        self._reader: _Reads | None = None
        self._parts: list[CallPart] = []
        self._num_calls = 0
        self._is_open = False

    @property
    def has_begun(self) -> bool:
        """Whether the text is over, and calls have begun."""
        return self._reader is not None

    @property
    def is_whole(self) -> bool:
        """Whether there are calls, and all of them have all of their arguments."""
        return self._num_calls > 0 and not self._is_open

    def push(self, text: str) -> tuple[str, tuple[CallPart, ...]]:
        """What of the text, and what of calls, may be shown by now."""
        said = ""
        if self._reader is None:
            said, text = self._split(self._held + text)
        if self._reader is not None:
            for character in text:
                self._reader.send(character)
        parts, self._parts = self._parts, []
        return said, tuple(parts)

    def flush(self) -> str:
        """Text that was held back; call it when the answer ends."""
        held, self._held = self._held, ""
        return held

    def _split(self, text: str) -> tuple[str, str]:
        """What may be shown, and, if calls have begun, what follows their mark."""
        opening = self._shape.opening
        mark = self._shape.mark or opening
        if not self._begins_answers:
            said, found, rest = text.partition(mark)
            held = overlap(text, mark)
        else:
            start = text.lstrip(BLANK)
            is_first = self._is_fresh and start.startswith(mark)
            said, found, rest = ("", mark, start.removeprefix(mark)) if is_first else (text, "", "")
            held = len(text) if self._is_fresh and mark.startswith(start) else 0
        if found:
            self._held = ""
            self._reader = self._read(len(opening) - len(mark))
            next(self._reader)
            return said, rest
        said, self._held = text[: len(text) - held], text[len(text) - held :]
        self._is_fresh = self._is_fresh and not said
        return said, ""

    def _read(self, num_opening: int) -> _Reads:
        """Read calls."""
        shape = self._shape
        yield from _skip(num_opening)
        while True:
            name = ""
            while NAME.match(character := (yield)):
                name += character
            self._parts.append(CallPart(self._num_calls, name, ""))
            self._num_calls += 1
            self._is_open = True
            if shape.parameters is None:
                if shape.middle:
                    yield from _skip(len(shape.middle) - 1)
                    character = yield
                yield from self._json(character)
                self._is_open = False
                yield from _skip(len(shape.close))
            else:
                yield from self._marked(name, character)
            if (yield) != (shape.between or "")[:1]:
                break
            yield from _skip(len(shape.between or "") - 1)
        # What closes all calls says nothing.
        while True:
            yield

    def _json(self, character: str, end: str = "") -> _Reads:
        """Read a list or an object, or any value up to what follows it, of which a character has been read."""
        depth, is_text, is_escaped = 0, False, False
        while depth or is_text or character != end:
            self._write(character)
            if is_text:
                is_text = is_escaped or character != '"'
                is_escaped = not is_escaped and character == "\\"
            else:
                is_text = character == '"'
                depth += (character in "{[") - (character in "}]")
                if not end and not depth:
                    return
            character = yield

    def _marked(self, name: str, character: str) -> _Reads:
        """Read arguments between marks, of which the first character has been read, and what closes the call."""
        marks, ending = self._shape.parameters, self._shape.value_end
        assert marks is not None
        next_one, close = (text.removeprefix(ending) for text in (marks.next, self._shape.close))
        types = self._types.get(name, {})
        self._write("{")
        has_more, num_left = yield from _either(character, marks.first, marks.empty)
        separator = ""
        while has_more:
            yield from _skip(num_left)
            key = yield from _until(marks.value)
            self._write(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            yield from self._value(types.get(key, _TEXTS), ending)
            has_more, num_left = yield from _either((yield), next_one, close)
            separator = ", "
        self._write("}")
        self._is_open = False
        yield from _skip(num_left)

    def _value(self, types: frozenset[str], ending: str) -> _Reads:
        """Read an argument, and what ends it."""
        if "string" not in types:
            yield from self._json((yield), ending[0])
            yield from _skip(len(ending) - 1)
        elif types != _TEXTS:
            # What it is shows at its end.
            text = yield from _until(ending)
            self._write(as_json(text, types))
        else:
            self._write('"')
            held = ""
            while not held.endswith(ending):
                sure = len(held) - overlap(held, ending)
                self._write(json.dumps(held[:sure], ensure_ascii=False)[1:-1])
                held = held[sure:] + (yield)
            self._write(json.dumps(held.removesuffix(ending), ensure_ascii=False)[1:-1] + '"')

    def _write(self, text: str) -> None:
        """Add to the arguments of the call that is being read."""
        if not text:
            return
        number, name = self._num_calls - 1, None
        if self._parts and self._parts[-1].number == number:
            last = self._parts.pop()
            name, text = last.name, last.arguments + text
        self._parts.append(CallPart(number, name, text))


def _skip(count: int) -> _Reads:
    for _ in range(count):
        yield


def _until(mark: str) -> Generator[None, str, str]:
    """Read a text up to a mark, and this."""
    text = ""
    while not text.endswith(mark):
        text += yield
    return text.removesuffix(mark)


def _either(character: str, one: str, other: str) -> Generator[None, str, tuple[bool, int]]:
    """Read of two texts, of which a character has been read, until it is clear which it is.

    Whether it is the first of them, and how much of it is left.
    """
    # By characters, as is meant.
    shared = len(commonprefix([one, other]))  # noqa: RUF071
    for _ in range(shared):
        character = yield
    is_one = character == one[shared]
    return is_one, len(one if is_one else other) - shared - 1
