"""This file holds how a chat template writes calls of tools, which is found by letting it write some.

A call has the name of a function, and its arguments either as JSON or each between marks. What a template writes around
these is the same for all calls, so that a few made-up ones show it: no list of models is needed.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from os.path import commonprefix
from typing import Any

from nanochat.errors import InputError, NanochatError
from nanochat.text.call_shape import ID, NAME, SPECIAL, CallShape, ParameterShape, spelled
from nanochat.text.codec import TextCodec
from nanochat.text.template import render_template, template_variables
from nanochat.text.thinking import marks_of

__all__ = ["call_shape"]

_FUNCTIONS = ("probed_first", "probed_second")
# Long numbers are OpenAI's, short ones those that Mistral's templates insist on.
_IDS = (("call_0a1b2c3d4e", "call_5f6a7b8c9d"), ("a1B2c3D4e", "f5G6h7I8j"))
_ARGUMENTS = {"key_one": "value one", "key_two": 17, "key_three": "value three"}
_CONTENT = "probed content"
_ASKED: dict[str, object] = {"role": "user", "content": "probed question"}
# In the prompt, so that what a template says of its tools has none of the names that are looked for.
_TOOL = {
    "type": "function",
    "function": {
        "name": "declared",
        "description": "declared",
        "parameters": {
            "type": "object",
            "properties": {"given": {"type": "string", "description": "declared"}},
            "required": ["given"],
        },
    },
}
# What stands before a call wherever it is in an answer, in plain text: a tag.
_TAG = re.compile(r"<[^<>\s]+>|\[[A-Z_]+\]")


class _UnknownError(Exception):
    """The template does not write calls as they are known here."""


def call_shape(template: str, tokenizer: TextCodec) -> CallShape:
    """How a template writes calls.

    Raises
    ------
    InputError
        If it knows no tools, or writes calls in a way that is not understood.
    """
    specials = tuple(sorted(tokenizer.specials, key=len, reverse=True))
    stops = tuple(name for name in specials if tokenizer.specials[name] in tokenizer.stop_ids)
    names = {
        "bos_token": _name_of(tokenizer.bos, tokenizer.specials),
        "eos_token": _name_of(tokenizer.eos, tokenizer.specials),
    }
    found = _found(template, specials, stops, tuple(names.items()))
    if isinstance(found, str):
        raise InputError(f"tools cannot be served with this model: {found}; leave them out")
    return found


def _name_of(token: int | None, specials: Mapping[str, int]) -> str:
    return next((name for name, number in specials.items() if number == token), "")


@lru_cache(maxsize=8)
def _found(
    template: str,
    specials: tuple[str, ...],
    stops: tuple[str, ...],
    names: tuple[tuple[str, str], ...],
) -> CallShape | str:
    """The shape, or why there is none."""
    if "tools" not in template_variables(template):
        return "its chat template knows none"
    why = failure = "how its chat template writes calls is not understood"
    for ids in _IDS:
        probe = _Probe(template, dict(names), stops, ids=ids)
        try:
            shape = probe.shape()
        except NanochatError as error:
            failure = f"its chat template writes no calls ({error!s:.200})"
        except _UnknownError as error:
            return f"{why} ({error})"
        else:
            shape = _spelled_shape(shape, specials)
            if not shape.mark and ID in shape.opening:
                return f"{why} (numbers stand before names, and calls have no mark)"
            if shape.mark or marks_of(template) is None:
                return shape
            return f"{why} (it thinks, and calls have no mark)"
    return failure


def _spelled_shape(shape: CallShape, specials: tuple[str, ...]) -> CallShape:
    def told(text: Any) -> Any:
        return spelled(text, specials) if isinstance(text, str) else text

    fields = {name: told(value) for name, value in vars(shape).items()}
    if shape.parameters is not None:
        own = {name: told(value) for name, value in vars(shape.parameters).items()}
        fields["parameters"] = ParameterShape(**own)
    opening = fields["opening"]
    special = next((name for name in specials if opening.startswith(SPECIAL + name)), None)
    tag = _TAG.match(opening)
    fields["mark"] = SPECIAL + special if special else tag[0] if tag else ""
    return CallShape(**fields)


class _Probe:
    """A template that is asked for calls with these numbers; its failures are `NanochatError`."""

    def __init__(
        self,
        template: str,
        names: Mapping[str, str],
        stops: tuple[str, ...],
        *,
        ids: tuple[str, str],
    ) -> None:
        self._template = template
        self._names = {**names, "tools": [_TOOL]}
        self._stops = stops
        self._ids = ids

    def shape(self) -> CallShape:
        """How it writes them."""
        asked = self._written()
        plain = self._written({"content": _CONTENT})[len(asked) :]
        header, _, turn_end = plain.partition(_CONTENT)
        turns = [
            self._turn(asked, self._call(0, _ARGUMENTS), self._call(1, _ARGUMENTS)),
            self._turn(asked, self._call(0, {}), self._call(1, {})),
        ]
        is_single = any(turn is None for turn in turns)
        if is_single:
            turns = [self._turn(asked, self._call(0, each)) for each in (_ARGUMENTS, {})]
        full, empty = (self._without_id(turn or "") for turn in turns)
        parts = re.split("|".join(_FUNCTIONS), full)
        if len(parts) != (2 if is_single else 3):
            raise _UnknownError("the name of a function is not written once for each call")
        opening, *calls = parts
        opening = self._opening(opening, header)
        calls[-1] = self._without_end(calls[-1], turn_end)
        for call in calls:
            if NAME.match(call):
                raise _UnknownError("nothing ends the name of a function")
        behind = self._turn(asked, self._call(0, _ARGUMENTS), content=_CONTENT)
        if opening not in self._without_id(behind or ""):
            raise _UnknownError("calls behind a text are written otherwise")
        bare = re.split("|".join(_FUNCTIONS), empty)[1:] or [""]
        bare[-1] = self._without_end(bare[-1], turn_end)
        short = self._ids is _IDS[1]
        return _json_shape(opening, calls, short) or _marked_shape(opening, calls, bare, short)

    def _opening(self, text: str, header: str) -> str:
        # Some write a space before a text only.
        header = header.rstrip(" ")
        if not text.startswith(header):
            raise _UnknownError("a turn that calls begins unlike others")
        text = text.removeprefix(header).lstrip()
        if not text:
            raise _UnknownError("nothing stands before the name of a function")
        return text

    def _without_end(self, text: str, turn_end: str) -> str:
        """What a turn's last call ends with, without what ends any turn."""
        places = [text.find(name) for name in self._stops if name in text]
        return text[: min(places)] if places else text.removesuffix(turn_end)

    def _without_id(self, text: str) -> str:
        for number in self._ids:
            text = text.replace(number, ID * len(number))
        return text

    def _call(self, number: int, arguments: Mapping[str, object]) -> dict[str, object]:
        function = {"name": _FUNCTIONS[number], "arguments": arguments}
        return {"id": self._ids[number], "type": "function", "function": function}

    def _turn(self, asked: str, *calls: Mapping[str, object], content: str = "") -> str | None:
        """What is written for a turn with calls; None if it cannot have as many."""
        try:
            text = self._written({"content": content, "tool_calls": [*calls]})
        except NanochatError:
            if len(calls) > 1:
                return None
            raise
        if not text.startswith(asked):
            raise _UnknownError("a turn changes what was written before it")
        return text[len(asked) :]

    def _written(self, *answers: Mapping[str, object]) -> str:
        messages: list[dict[str, object]] = [
            _ASKED,
            *({"role": "assistant", **answer} for answer in answers),
        ]
        return render_template(self._template, messages, names=self._names, reply=False)


def _json_shape(opening: str, calls: list[str], short_ids: bool) -> CallShape | None:
    """The shape of calls whose arguments are JSON."""
    found = [_around_json(call) for call in calls]
    if None in found:
        return None
    middles, arguments, rests = zip(*(each for each in found if each is not None), strict=True)
    if len({*middles}) > 1:
        raise _UnknownError("what stands before arguments differs from call to call")
    close, between, end = _ends([*rests])
    compact = json.dumps(_ARGUMENTS, separators=(",", ":"))
    return CallShape(
        mark="",
        opening=opening,
        middle=middles[0],
        close=close,
        between=between,
        end=end,
        separators=(",", ":") if arguments[0] == compact else (", ", ": "),
        short_ids=short_ids,
    )


def _around_json(text: str) -> tuple[str, str, str] | None:
    decoder = json.JSONDecoder()
    for brace in re.finditer(r"\{", text):
        try:
            value, end = decoder.raw_decode(text, brace.start())
        except ValueError:
            continue
        if value == _ARGUMENTS:
            return text[: brace.start()], text[brace.start() : end], text[end:]
    return None


def _marked_shape(opening: str, calls: list[str], bare: list[str], short_ids: bool) -> CallShape:
    """The shape of calls of which each argument stands between marks."""
    wanted = [str(part) for pair in _ARGUMENTS.items() for part in pair]
    pattern = "|".join(map(re.escape, wanted))
    if any(re.findall(pattern, call) != wanted for call in calls) or len(bare) != len(calls):
        raise _UnknownError("arguments are neither JSON nor one after the other")
    pieces = [re.split(pattern, call) for call in calls]
    firsts = {first for first, *_ in pieces}
    values = {each[place] for each in pieces for place in (1, 3, 5)}
    nexts = {each[place] for each in pieces for place in (2, 4)}
    if any(len(each) > 1 for each in (firsts, values, nexts)):
        raise _UnknownError("what stands between arguments depends on them")
    first, value, following = firsts.pop(), values.pop(), nexts.pop()
    if not (value and following) or value[-1:] + following[:1] == '""':
        raise _UnknownError("nothing parts arguments, or texts among them are quoted")
    # What follows the last argument follows where there is none, but for what ends an argument.
    rests = [each[-1] for each in pieces]
    shared = _common_end(rests[0], bare[0])
    ended, empty = rests[0].removesuffix(shared), bare[0].removesuffix(shared)
    if not all(
        rest.startswith(ended) and empty + rest.removeprefix(ended) == each
        for rest, each in zip(rests, bare, strict=True)
    ):
        raise _UnknownError("what follows arguments depends on them")
    close, between, end = _ends([rest.removeprefix(ended) for rest in rests])
    shape = CallShape(
        mark="",
        opening=opening,
        middle="",
        close=ended + close,
        between=between,
        end=end,
        parameters=ParameterShape(first=first, value=value, next=following, empty=empty + close),
        short_ids=short_ids,
    )
    for one, other in ((shape.close, following), (empty + close, first)):
        if len(_common_start(one, other)) == min(len(one), len(other)):
            raise _UnknownError("nothing tells the last argument from others")
    if not shape.value_end:
        raise _UnknownError("nothing tells where an argument ends")
    return shape


def _ends(rests: list[str]) -> tuple[str, str | None, str]:
    """What follows every call, then what follows it before another one, or None, and behind the last."""
    if len(rests) == 1:
        return rests[0], None, ""
    between, end = rests
    shared = _common_start(between, end)
    if shared == between or between.startswith(ID, len(shared)):
        raise _UnknownError("nothing tells another call from the end")
    return shared, between.removeprefix(shared), end.removeprefix(shared)


def _common_start(one: str, other: str) -> str:
    # By characters, as is meant.
    return commonprefix([one, other])  # noqa: RUF071


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]
