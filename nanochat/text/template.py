"""This file holds chat templates at work: Jinja that came with somebody's model, within limits.

A template is a program. It cannot reach Python behind its variables (Jinja's sandbox), and here it cannot take much
time or memory either: steps that repeat, calls, filters, operators on texts and lists, and lists that are made ask
first, and what is written is counted.

References
----------
.. [1] github.com/huggingface/transformers, src/transformers/utils/chat_template_utils.py, version 5.23.
"""

import datetime
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from types import CodeType
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, generate_lorem_ipsum
from jinja2.visitor import NodeTransformer

from nanochat.errors import FormatError, InputError

__all__ = ["render_template", "template_variables"]

_MAX_TEMPLATE = 2**18
_MAX_SECONDS = 5.0
_MAX_STEPS = 200_000
# Of a value, beside what the messages hold, in characters; and of what one operation may make of several.
_MAX_SIZE = 2**20
_MAX_WORK = 2**26
_MAX_BITS = 4096
_NUMBERS = re.compile(r"\d+")
_MAX_LOREM_WORDS = 10_000
# Of JSON's indentation and separators, which stand at every place.
_MAX_JSON_GAP = 16
# Of what goes into filters whose time grows with the square.
_SLOW = {"urlize": 2**13, "wordwrap": 2**14, "sum": 2**12}


class _LimitError(Exception):
    """The template wants too much."""


class _RefusalError(Exception):
    """The template says that the conversation is none that its model knows."""


def render_template(
    template: str,
    messages: Sequence[Mapping[str, object]],
    *,
    names: Mapping[str, object],
    reply: bool,
) -> str:
    """The text that a chat template makes of a conversation.

    Parameters
    ----------
    template : str
        In Jinja, as transformers runs it.
    messages : sequence of mappings
        Each with ``role``, most with ``content``; of JSON's types only, as is all that a template sees.
    names : mapping
        Its other variables, such as ``tools``, or ``bos_token``, the text of a special token.
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
    given = {"tools": None, "documents": None, **names, "messages": [*map(dict, messages)]}
    environment = _Environment(_MAX_SIZE + 4 * _size([*given.values()], _MAX_WORK))
    try:
        program = jinja2.Template.from_code(
            environment, _compiled(template), dict(environment.globals)
        )
        pieces: list[str] = []
        for piece in program.generate(given, add_generation_prompt=reply):
            pieces.append(piece)
            environment.small(pieces)
    except _RefusalError as error:
        raise InputError(
            f"the model's chat template refuses this conversation: {error!s:.200}"
        ) from error
    # A program of somebody else's may fail with whatever Python has.
    except Exception as error:
        raise FormatError(
            f"the model's chat template fails ({type(error).__name__.lstrip('_')}: {error!s:.200}): pass another as "
            "chat_template (--template FILE), or write the prompt in the model's format and generate with special=True "
            "(--special)"
        ) from error
    return "".join(pieces)


@lru_cache(maxsize=8)
def template_variables(template: str) -> frozenset[str]:
    """Names of the variables that a template takes from its caller; none if it is no template.

    >>> sorted(template_variables("{% set x = 1 %}{{ x }}{{ y }}{{ z if z is defined }}"))
    ['y', 'z']
    """
    if len(template) > _MAX_TEMPLATE:
        return frozenset()
    environment = _Environment(_MAX_SIZE)
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(template)))
    except (jinja2.TemplateError, RecursionError):
        # Who renders it is told why.
        return frozenset()


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox with limits; for one rendering."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, size: int) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        self._size = size
        self._written = 0
        self._steps = 0
        self._end = time.monotonic() + _MAX_SECONDS
        filters = {**self.filters, "tojson": _to_json}
        self.filters = {name: self._limited(name, function) for name, function in filters.items()}
        self.globals.update(
            namespace=_Namespace,
            lipsum=_lorem_ipsum,
            raise_exception=_refuse,
            strftime_now=lambda form: datetime.datetime.now().strftime(form),
        )

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

    def written(self, value: object) -> object:
        """Count what is about to be written, also to a variable or a macro's result; give it back."""
        self.count(len(value) if isinstance(value, str) else _size(value, self._size))
        return value

    def count(self, characters: int) -> None:
        """Count characters that are about to be written."""
        self._written += characters
        if self._written > 16 * self._size:
            raise _LimitError(f"over {16 * self._size} characters written")

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
                self._require_narrow(own)
        return self.small(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        bits = left.bit_length() if isinstance(left, int) else 64
        if operator == "**" and max(bits, 1) * abs(right) > _MAX_BITS:
            raise _LimitError(f"a power of over {_MAX_BITS} bits")
        if operator == "%":
            self._require_narrow(left)
        if any(isinstance(value, str | bytes | list | tuple) for value in (left, right)):
            self._afford((left, right), total=operator == "+")
        return self.small(super().call_binop(context, operator, left, right))

    def _require_narrow(self, form: object) -> None:
        """Refuse a format that may make far more than it is."""
        if (
            isinstance(form, str)
            and sum(map(int, _NUMBERS.findall(form[: self._size]))) > self._size
        ):
            raise _LimitError(f"a format of over {self._size} characters")

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        most = _SLOW.get(name, self._size)

        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.step()
            # What is made on demand has no size yet.
            ready = [self._list(arg) if isinstance(arg, Iterator) else arg for arg in args]
            self._afford((*ready, *kwargs.values()))
            if name in _SLOW and any(_size(value, most) > most for value in ready):
                raise _LimitError(f"more than {most} characters or items for {name}")
            if name == "format":
                self._require_narrow(ready[0])
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


class _Generation(Extension):
    """The tag around what an assistant said, by which training finds it; here its body is written, and no more."""

    tags = {"generation"}  # noqa: RUF012  # as in Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Macro) -> object:
        return caller()


class _Namespace(Namespace):
    """Jinja's, without names that Python keeps for itself; as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be an attribute, as in Jinja
        self, *others = args
        attributes = dict(*others, **kwargs)
        for name in attributes:
            _require_plain(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


class _Limits(NodeTransformer):
    """Makes a template ask before what it repeats, and about what it keeps."""

    def _counted(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_ask("step")))
        return node

    # Jinja's names.
    visit_For = visit_Macro = visit_CallBlock = _counted  # noqa: N815

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        fixed = sum(len(each.data) for each in node.nodes if isinstance(each, nodes.TemplateData))
        node.nodes = [
            each if isinstance(each, nodes.TemplateData) else _ask("written", each)
            for each in node.nodes
        ]
        return [nodes.ExprStmt(_ask("count", nodes.Const(fixed))), node] if fixed else [node]

    def _made(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        # A tuple may also stand for what is assigned to.
        return node if getattr(node, "ctx", "load") != "load" else _ask("small", node)

    visit_List = visit_Dict = visit_Tuple = _made  # noqa: N815

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
        case str() | bytes() | range():
            return len(value)
        case int() if not isinstance(value, bool):
            return min(abs(value), limit + 1)
        case list() | tuple() | dict():
            size = 0
            for item in itertools.chain(*value.items()) if isinstance(value, dict) else value:
                size += 1 + (_size(item, limit - size) if size <= limit else 0)
                if size > limit:
                    break
            return size
        case _:
            return 1


@lru_cache(maxsize=8)
def _compiled(template: str) -> CodeType:
    environment = _Environment(_MAX_SIZE)
    return environment.compile(_Limits().visit(environment.parse(template)))


def _require_plain(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r:.40}: rename it")


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    for gap in (indent, *(separators or ())):
        if (len(gap) if isinstance(gap, str) else abs(gap or 0)) > _MAX_JSON_GAP:
            raise _LimitError(f"JSON with gaps of over {_MAX_JSON_GAP} characters")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _lorem_ipsum(n: int = 5, html: bool = True, min: int = 20, max: int = 100) -> str:
    if n * (1 + abs(min) + abs(max)) > _MAX_LOREM_WORDS:
        raise _LimitError(f"over {_MAX_LOREM_WORDS} words")
    return generate_lorem_ipsum(n, html, min, max)


def _refuse(message: object) -> None:
    raise _RefusalError(message)
