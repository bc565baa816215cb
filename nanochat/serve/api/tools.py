"""This file holds tools as requests declare them, and what they make of an answer: a grammar, and calls told apart.

References
----------
.. [1] OpenAI, API reference, "tools", "tool_choice" and "parallel_tool_calls"; guide "Function calling".
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nanochat.errors import InputError
from nanochat.serve.api.errors import ApiError
from nanochat.serve.api.forms import FORMS, asked_form, asked_schema
from nanochat.serve.api.ids import new_id
from nanochat.serve.api.schema import ChatRequest
from nanochat.serve.served import Served
from nanochat.text.call_grammar import CallChoice, Function, calls_grammar
from nanochat.text.call_probe import call_shape
from nanochat.text.call_shape import CallShape
from nanochat.text.calls import Calls, calls_of
from nanochat.text.chat import template_of
from nanochat.text.grammar import Grammar, lark_grammar
from nanochat.text.messages import checked_tools
from nanochat.text.thinking import Thoughts

__all__ = ["AskedTools", "asked_tools"]

_MOST_TOOLS = 128
_MOST_BYTES = 1_000_000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Grammars that are kept compiled: each turn of a conversation declares the same tools.
_KEPT = 32


@dataclass(frozen=True, kw_only=True)
class AskedTools:
    """The tools of a request, in the words of the model's chat template."""

    served: Served
    shape: CallShape
    # As they were declared, for the template.
    declared: list[dict[str, Any]]
    functions: tuple[Function, ...]
    choice: CallChoice
    several: bool
    # What an answer that calls nothing is kept to, if that is JSON, or otherwise.
    schema: dict[str, Any] | None
    form: Grammar | None

    @property
    def calls(self) -> Calls | None:
        """How calls are told from the text, if there may be any."""
        if self.choice == "none":
            return None
        return calls_of(self.shape, self.functions, content=self.schema)

    def constraint(self, thoughts: Thoughts | None) -> Grammar:
        """What keeps the answer to text and calls of declared functions.

        Raises
        ------
        ApiError
            If arguments cannot be kept to one of the schemas.
        """
        if self.choice == "none" and self.form is not None:
            return self.form
        may_think = thoughts is not None and thoughts.begun is None and not thoughts.ended
        thought = thoughts.marks.opening if thoughts is not None and may_think else None
        try:
            return self._compiled(self.functions, thought)
        except InputError as error:
            for function in self.functions:
                try:
                    self._compiled([function], thought)
                except InputError as own:
                    raise _wrong(f"tools, function {function.name!r}: {own}") from error
            raise _wrong(f"tools, all together: {error}") from error

    def new_id(self) -> str:
        """The number of a call."""
        return new_id()[:9] if self.shape.short_ids else f"call_{new_id()}"

    def _compiled(self, functions: Sequence[Function], thought: str | None) -> Grammar:
        text = calls_grammar(
            self.shape,
            functions,
            self.served.tokenizer,
            choice=self.choice,
            several=self.several,
            thought=thought,
            content=self.schema,
        )
        return _compiled(self.served, text)


@lru_cache(maxsize=_KEPT)
def _compiled(served: Served, text: str) -> Grammar:
    return lark_grammar(served.vocabulary, text, most=_MOST_BYTES)


def asked_tools(request: ChatRequest, served: Served) -> AskedTools | None:
    """The tools of a request, if it has any.

    Raises
    ------
    ApiError
        If one is malformed, the choice among them is none, or the model cannot call any.
    """
    if not request.tools:
        if request.tool_choice not in (None, "none"):
            raise _wrong("tool_choice without tools: pass tools, or leave it out", "tool_choice")
        return None
    if len(request.tools) > _MOST_TOOLS:
        raise _wrong(f"tools has {len(request.tools)} entries: pass {_MOST_TOOLS} or less")
    try:
        declared = checked_tools(request.tools)
        shape = call_shape(template_of(served.tokenizer, None), served.tokenizer)
    except InputError as error:
        raise _wrong(str(error)) from error
    functions = [_function(number, tool) for number, tool in enumerate(request.tools)]
    names = [function.name for function in functions]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise _wrong(f"tools[{number}] is a second function {name!r}: give each its own name")
    choice, chosen = _choice(request.tool_choice, names)
    form = asked_form(request, served)
    schema = None if form is None else asked_schema(request)
    if choice != "none" and form is not None and (schema is None or not shape.mark):
        raise _wrong(
            "tools with a form of the answer: where this model may call, the form may be JSON by response_format, and "
            "only if calls have a mark of their own; pass one of both, or tool_choice none",
            next(name for name in FORMS if getattr(request, name) is not None),
        )
    return AskedTools(
        served=served,
        shape=shape,
        declared=declared,  # type: ignore[arg-type]  # mappings, as they were
        functions=tuple(function for function in functions if function.name in chosen),
        choice=choice,
        several=request.parallel_tool_calls is not False,
        schema=schema,
        form=form,
    )


def _function(number: int, tool: dict[str, Any]) -> Function:
    where = f"tools[{number}]"
    match tool:
        case {"type": "function", "function": {"name": str(name), **fields}}:
            pass
        case _:
            raise _wrong(
                f"{where} is {tool!r:.80}: pass a type, function, and a function with a name"
            )
    if not _NAME.fullmatch(name):
        raise _wrong(f"{where} has the name {name!r:.80}: use 1 to 64 letters, digits, _ and -")
    for key, kind in (("description", str), ("strict", bool), ("parameters", dict)):
        value = fields.get(key)
        if value is not None and not isinstance(value, kind):
            raise _wrong(f"{where} has {key} {value!r:.80}, which is no {kind.__name__}")
    # As OpenAI has it, a function whose parameters nobody describes has none.
    parameters: Any = fields.get("parameters") or {"properties": {}}
    try:
        size = len(json.dumps(parameters, ensure_ascii=False).encode())
    except UnicodeEncodeError as error:
        raise _wrong(f"{where} has parameters with half a character: send UTF-8") from error
    if size > _MOST_BYTES // 10:
        raise _wrong(f"{where} has parameters of {size} bytes: pass {_MOST_BYTES // 10} or less")
    return Function(name=name, parameters=parameters)


def _choice(given: object, names: Sequence[str]) -> tuple[CallChoice, Sequence[str]]:
    """What a choice is, and among which functions."""
    match given:
        case None:
            return "auto", names
        case "none" | "auto" | "required" as choice:
            return choice, names
        case {"type": "function", "function": {"name": str(name)}}:
            return "required", _known([name], names)
        case {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [*tools]}} if (
            mode in ("auto", "required") and tools
        ):
            return mode, _known([_named(tool) for tool in tools], names)
        case _:
            raise _wrong(
                f"tool_choice is {given!r:.80}: pass none, auto, required, a function with its name, or allowed_tools",
                "tool_choice",
            )


def _named(tool: object) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}}:
            return name
        case _:
            raise _wrong(f"tool_choice has {tool!r:.80}, which is no function", "tool_choice")


def _known(chosen: Sequence[str], names: Sequence[str]) -> Sequence[str]:
    for name in chosen:
        if name not in names:
            raise _wrong(f"tool_choice has {name!r:.80}, which tools have not", "tool_choice")
    return chosen


def _wrong(message: str, param: str = "tools") -> ApiError:
    return ApiError(400, message, param=param)
