"""This file holds the grammars that keep calls of tools to declared functions, and their arguments to JSON schemas.

References
----------
.. [1] github.com/guidance-ai/llguidance, docs/syntax.md, "Tool calling" and "Special tokens".
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from nanochat.errors import InputError
from nanochat.text.call_shape import BLANK, ID, SPECIAL, CallShape, spelled
from nanochat.text.call_values import COMPOSED, TEXT, Schemas, argument_schema
from nanochat.text.codec import TextCodec

__all__ = ["CallChoice", "Function", "calls_grammar"]

# Whether an answer may call, may or must.
CallChoice = Literal["none", "auto", "required"]

# What models write between their thoughts and a call; more of it would go on for ever.
_GAP = r"/[ \n]{1,2}/"


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function that may be called, and the JSON schema of its arguments, an object."""

    name: str
    parameters: Mapping[str, Any]


def calls_grammar(
    shape: CallShape,
    functions: Sequence[Function],
    codec: TextCodec,
    *,
    choice: CallChoice,
    several: bool,
    thought: str | None,
    content: Mapping[str, Any] | None,
) -> str:
    """A grammar of answers, in the manner of Lark.

    Parameters
    ----------
    several : bool
        Whether there may be more than one call.
    thought : str, optional
        What opens a thought that the model may begin before it answers.
    content : mapping, optional
        JSON schema of an answer that calls nothing; absent is any text.

    Raises
    ------
    InputError
        If the arguments of a function cannot be written in this shape.
    """
    lark = _Lark(codec)
    before = ""
    opener = spelled(thought or "", codec.specials)
    # In a text there is no special token, unless it is named.
    if opener and (choice == "required" or content is not None or SPECIAL in opener):
        before = f"({lark.literal(opener)})? "
    if choice == "none":
        lark.add("start", f"{before}{_plain(lark, shape)}")
        return lark.text
    calls = _calls(lark, shape, functions, several=several)
    opening = lark.literal(shape.opening)
    rest = lark.literal(shape.opening.removeprefix(shape.mark))
    if choice == "required":
        lark.add("start", f"{before}({_GAP})? {opening} {calls}")
    elif content is not None:
        lark.add("content", _json(content, (",:")))
        lark.add("start", f"{before}(content | {opening} {calls})")
    elif not shape.mark:
        lark.add("start", f"{before}({_plain(lark, shape)} | OPENING {calls})")
    else:
        head = lark.until("head", "TEXT", shape.mark)
        lark.add("start", f"{before}(TEXT | {head} {rest} {calls})")
    return lark.text


class _Lark:
    """A grammar as it grows."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        names = "|".join(re.escape(name) for name in sorted(codec.specials, key=len, reverse=True))
        self._parts = re.compile(f"({SPECIAL}(?:{names})|{ID}+)" if names else f"({ID}+)")
        self._lines = [f"TEXT: {TEXT}"]

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self._lines)

    def add(self, name: str, body: str, *, lazy: bool = False) -> str:
        """Add a rule, or, with a name in capitals, a terminal; its name."""
        self._lines.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def literal(self, text: str) -> str:
        """What matches a text of a `CallShape`."""
        return " ".join(map(self._part, filter(None, self._parts.split(text))))

    def until(self, name: str, terminal: str, mark: str) -> str:
        """What matches a text of a terminal up to the first mark behind it, and this."""
        first, *others = filter(None, self._parts.split(mark))
        rest = " ".join(map(self._part, others))
        if first.startswith(SPECIAL):
            return f"{terminal} {self._part(first)} {rest}"
        return f"{self.add(name, f'{terminal} {self._part(first)}', lazy=True)} {rest}"

    def _part(self, text: str) -> str:
        if text.startswith(SPECIAL):
            return f"<[{self._codec.specials[text.removeprefix(SPECIAL)]}]>"
        if text.startswith(ID):
            return f"/[A-Za-z0-9]{{{len(text)}}}/"
        return json.dumps(text, ensure_ascii=False)


def _plain(lark: _Lark, shape: CallShape) -> str:
    """A text that calls nothing."""
    if shape.mark.startswith(SPECIAL):
        return "TEXT"
    if shape.mark:
        lark.add("CALLING", f"TEXT {lark.literal(shape.mark)} TEXT")
    else:
        # One terminal, since white space alone may as well begin a text.
        lark.add("OPENING", f"/[{json.dumps(BLANK)[1:-1]}]*/ {lark.literal(shape.opening)}")
        lark.add("CALLING", "OPENING TEXT")
    return lark.add("PLAIN", "TEXT & ~CALLING")


def _calls(lark: _Lark, shape: CallShape, functions: Sequence[Function], *, several: bool) -> str:
    for number, function in enumerate(functions):
        name = f"f{number}"
        if shape.parameters is None:
            body = _json(argument_schema(function.parameters), shape.separators)
            start, close = lark.literal(function.name + shape.middle), lark.literal(shape.close)
            lark.add(name, f"{start} {body} {close}")
        else:
            _Marked(lark, shape, name, function).add()
    call = lark.add("call", " | ".join(f"f{number}" for number in range(len(functions))))
    more = f"({lark.literal(shape.between)} {call})*" if several and shape.between else ""
    return lark.add("calls", f"{call} {more} {lark.literal(shape.end)}")


def _json(schema: Mapping[str, Any], separators: Sequence[str]) -> str:
    item, key = separators
    # Small models write white space for ever where a form lets them.
    options = {"whitespace_flexible": False, "item_separator": item, "key_separator": key}
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


class _Marked:
    """The rules of a function whose arguments stand between marks, in the order of their declaration."""

    def __init__(self, lark: _Lark, shape: CallShape, name: str, function: Function) -> None:
        assert shape.parameters is not None
        self._lark, self._shape, self._name, self._function = lark, shape, name, function
        self._marks = shape.parameters
        self._root = argument_schema(function.parameters)
        self._schemas = Schemas(self._root)
        self._ending = shape.value_end

    def add(self) -> None:
        """Add them."""
        lark, name, marks = self._lark, self._name, self._marks
        properties, required = self._root.get("properties", {}), self._root.get("required", [])
        is_plain = isinstance(properties, Mapping) and isinstance(required, list)
        if (
            not is_plain
            or COMPOSED & self._root.keys()
            or any(key not in [*properties] for key in required)
            or any(marks.value in key for key in properties)
        ):
            raise InputError(
                "this model's chat template writes each argument by its name: pass parameters with properties, among "
                "which are all that are required"
            )
        following = marks.next.removeprefix(self._ending)
        lark.add(
            f"{name}v{len(properties)}", lark.literal(self._shape.close.removeprefix(self._ending))
        )
        starts = []
        for number, (key, schema) in reversed([*enumerate(properties.items())]):
            value = self._value(f"{name}x{number}", schema)
            value = f"{lark.literal(key + marks.value)} {value} {name}v{number + 1}"
            rule = f"{lark.literal(following)} {value}" if following else value
            skipped = "" if key in required else f" | {name}v{number + 1}"
            lark.add(f"{name}v{number}", rule + skipped)
            starts.append(
                (key in required, f"{lark.literal(self._function.name + marks.first)} {value}")
            )
        alternatives = []
        for is_required, start in reversed(starts):
            alternatives.append(start)
            if is_required:
                break
        else:
            alternatives.append(lark.literal(self._function.name + marks.empty))
        lark.add(name, " | ".join(alternatives))

    def _value(self, name: str, schema: object) -> str:
        """What matches a value and its end."""
        lark, root = self._lark, self._root
        if "string" not in self._schemas.types(schema):
            own: dict[str, Any] = {
                key: root[key] for key in ("$defs", "definitions") if key in root
            }
            body = _json({**own, **self._schemas.resolved(schema)}, self._shape.separators)
            if '"$ref": "#"' in body:
                raise InputError(
                    "a parameter's JSON schema refers to all of them: name it in $defs"
                )
            return f"{body} {lark.literal(self._ending)}"
        forms = self._schemas.expressions(schema)
        if TEXT in forms:
            return lark.until(name, "TEXT", self._ending)
        # A text ends at the first of these marks, even if it is too short.
        body = " | ".join(forms)
        if not self._ending.startswith(SPECIAL):
            body = f"({body}) & ~(TEXT {lark.literal(self._ending)} TEXT)"
        return lark.until(name, lark.add(name.upper(), body), self._ending)
