"""This file holds chat templates at work: Jinja that came with somebody's model, within limits.

A template is a program. It cannot reach Python behind its variables (Jinja's sandbox), and here it cannot take much
time or memory either: every repeated step, call, filter and operator asks first.

References
----------
.. [1] github.com/huggingface/transformers, src/transformers/utils/chat_template_utils.py, version 5.23.
"""

import datetime
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from nanochat.errors import FormatError, InputError

__all__ = ["render_template"]

_MAX_TEMPLATE = 2**18
_MAX_SECONDS = 5.0
_MAX_STEPS = 200_000
# Of a value, beside what the messages hold, in characters; and of what one operation may make of several.
_MAX_SIZE = 2**20
_MAX_WORK = 2**26
_MAX_BITS = 4096
_WIDE = re.compile(r"\d{5}")
# Filters without which a template cannot hide how long a text becomes, or what it depends on.
_LEFT_OUT = {"format", "pprint", "random", "urlize", "wordwrap", "xmlattr"}


class _LimitError(Exception):
    """The template wants too much."""


class _RefusalError(Exception):
    """The template says that the conversation is none that its model knows."""


def render_template(
    template: str, messages: Sequence[Mapping[str, str]], *, names: Mapping[str, str], reply: bool
) -> str:
    """The text that a chat template makes of a conversation.

    Parameters
    ----------
    template : str
        In Jinja, as transformers runs it.
    messages : sequence of mappings
        Each with ``role`` and ``content``.
    names : mapping
        Text of special tokens by their roles, such as ``bos_token``.
    reply : bool
        True opens a turn of the assistant at the end.

    Examples
    --------
    >>> template = "{% for message in messages %}{{ message.content | upper }}{% endfor %}"
    >>> render_template(template, [{"role": "user", "content": "hi"}], names={}, reply=True)
    'HI'
    """
    if len(template) > _MAX_TEMPLATE:
        raise FormatError(
            f"the model's chat template has {len(template)} characters, over the limit of {_MAX_TEMPLATE}; "
            "fetch the model again"
        )
    held = sum(len(text) for message in messages for text in message.values())
    environment = _Environment(_MAX_SIZE + 4 * held)
    try:
        program = environment.program(template)
        pieces: list[str] = []
        for piece in program.generate(
            messages=[dict(message) for message in messages],
            add_generation_prompt=reply,
            tools=None,
            documents=None,
            **names,
        ):
            pieces.append(piece)
            environment.small(pieces)
    except _RefusalError as error:
        raise InputError(
            f"the model's chat template refuses this conversation: {error!s:.200}"
        ) from error
    # A program of somebody else's may fail with whatever Python has.
    except Exception as error:
        raise FormatError(
            f"the model's chat template fails ({type(error).__name__.lstrip('_')}: {error!s:.200}): write the prompt "
            "in the model's own format and use generate, or give the model another chat_template"
        ) from error
    return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with limits; for one rendering."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, size: int) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        self._size = size
        self._steps = 0
        self._end = time.monotonic() + _MAX_SECONDS
        filters = {**self.filters, "tojson": _to_json}
        self.filters = {
            name: self._limited(function)
            for name, function in filters.items()
            if name not in _LEFT_OUT
        }
        self.globals = {
            "range": self.globals["range"],
            "namespace": self.globals["namespace"],
            "dict": dict,
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.datetime.now().strftime(form),
        }

    def program(self, template: str) -> jinja2.Template:
        """Compile a template."""
        tree = _Limits().visit(self.parse(template))
        return jinja2.Template.from_code(self, self.compile(tree), dict(self.globals))

    def step(self) -> None:
        """Count one more step of a loop or macro."""
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise _LimitError(f"over {_MAX_STEPS} steps")
        if time.monotonic() > self._end:
            raise _LimitError(f"over {_MAX_SECONDS:g} seconds")

    def small(self, value: object) -> object:
        """Give the value back, unless it is too large."""
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise _LimitError(f"a number of over {_MAX_BITS} bits")
        if _size(value, self._size) > self._size:
            raise _LimitError(f"a value of over {self._size} characters")
        return value

    def joined(self, *values: object) -> object:
        """What ``~`` makes."""
        self._afford(values, total=True)
        return self.small("".join(map(str, values)))

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        # The sandbox wraps what formats a text.
        own = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if own is not self:
            self.step()
            self._afford((own, *args, *kwargs.values()))
            if getattr(function, "__name__", "") in ("format", "format_map"):
                _require_narrow(own)
        return self.small(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        bits = left.bit_length() if isinstance(left, int) else 64
        if operator == "**" and max(bits, 1) * abs(right) > _MAX_BITS:
            raise _LimitError(f"a power of over {_MAX_BITS} bits")
        if operator == "%":
            _require_narrow(left)
        if isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
            self._afford((left, right), total=operator == "+")
        return self.small(super().call_binop(context, operator, left, right))

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.step()
            # What is made on demand has no size yet.
            ready = [self._list(arg) if isinstance(arg, Iterator) else arg for arg in args]
            self._afford((*ready, *kwargs.values()))
            return self.small(function(*ready, **kwargs))

        return limited

    def _list(self, values: Iterator[object]) -> list[object]:
        found = []
        for value in values:
            self.step()
            found.append(value)
        return found

    def _afford(self, values: Sequence[object], *, total: bool = False) -> None:
        """Refuse to combine values if the result, or the work, could be too large."""
        work = 0 if total else 1
        for value in values:
            size = _size(value, _MAX_WORK)
            work = work + size if total else work * max(size, 1)
        if work > max(_MAX_WORK, 64 * self._size):
            raise _LimitError("an operation on values that are too large")


class _Limits(NodeTransformer):
    """Makes a template ask before what it repeats, and about what it keeps."""

    def _counted(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_ask("step")))
        return node

    # Jinja's names.
    visit_For = visit_Macro = visit_CallBlock = _counted  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _ask("joined", *node.nodes)

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        target = node.target
        kept: nodes.Expr = nodes.Name(getattr(target, "name", ""), "load")
        if isinstance(target, nodes.NSRef):
            kept = nodes.Getattr(nodes.Name(target.name, "load"), target.attr, "load")
        return [node, nodes.ExprStmt(_ask("small", kept))]


def _ask(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


def _size(value: object, limit: int) -> int:
    """Characters of a value, whole numbers counting as what they may repeat; beyond `limit`, any number above it."""
    match value:
        case str() | range():
            return len(value)
        case int() if not isinstance(value, bool):
            return min(abs(value), limit + 1)
        case list() | tuple() | dict():
            size = 0
            for item in value.values() if isinstance(value, dict) else value:
                size += 1 + (_size(item, limit - size) if size <= limit else 0)
                if size > limit:
                    break
            return size
        case _:
            return 1


def _require_narrow(form: object) -> None:
    if isinstance(form, str) and _WIDE.search(form):
        raise _LimitError("a format of over 9999 characters")


def _to_json(value: object, *, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: object) -> None:
    raise _RefusalError(message)
