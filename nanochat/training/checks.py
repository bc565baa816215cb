"""This file holds what is said of a setting that cannot be, in the words of this package."""

import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from nanochat.errors import ConfigError, did_you_mean

__all__ = ["check_value", "owners", "refusal"]

_RULES: Mapping[str, str] = {
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "float_type": "write a number",
    "finite_number": "write a finite number",
    "greater_than": "must be more than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "literal_error": "choose {expected}",
    "union_tag_invalid": "choose one of {expected_tags}",
    "dict_type": "must be a group of names and their values",
    "dataclass_type": "must be a group of settings",
    "model_attributes_type": "must be a group of settings",
}
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


def owners(kind: Any) -> tuple[type, ...]:
    """The dataclasses that a field of that type may be."""
    if is_dataclass(kind):
        return (typing.cast("type", kind),)
    if typing.get_origin(kind) is tuple:
        return ()
    return tuple(found for part in typing.get_args(kind) for found in owners(part))


def check_value(owner: type, name: str, value: object) -> None:
    """Refuse a value that a field of a dataclass never has; the last part of `name` is the field's."""
    kind = typing.get_type_hints(owner, include_extras=True)[name.rpartition(".")[2]]
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            _said(name, value, first["type"], first.get("ctx", {}), first["msg"])
        ) from error


def refusal(error: ValidationError, owner: type) -> ConfigError:
    """The first mistake, of a value or a name, before what is absent."""
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] == "missing")
    first = mistakes[0]
    context = first.get("ctx", {})
    path = _without_tags(first["loc"], owner)
    name = ".".join(path)
    if first["type"] == "missing":
        return _absent(name)
    if first["type"] in _UNKNOWN:
        known = [each.name for kind in _holders(path[:-1], owner) for each in fields(kind)]
        return ConfigError(
            f"there is no setting {name!r:.80} in a recipe{did_you_mean(path[-1], known)}: correct or remove it, or "
            "upgrade nanochat-ternary"
        )
    if isinstance(context.get("error"), ConfigError):
        return typing.cast("ConfigError", context["error"])
    return ConfigError(_said(name, first["input"], first["type"], context, first["msg"]))


def _absent(name: str) -> ConfigError:
    if name == "steps":
        return ConfigError("the recipe needs a number of steps: add --set steps=1000, say")
    return ConfigError(f"the recipe needs {name}: add --set {name}=VALUE")


def _said(name: str, value: object, kind: str, context: Mapping[str, Any], message: str) -> str:
    rule = _RULES[kind].format_map(context) if kind in _RULES else message
    return f"{name}={value!r:.80}: {rule}"


def _without_tags(place: Sequence[int | str], owner: type) -> list[str]:
    """The parts of a setting's name: pydantic names the kind of rule among them, too."""
    path: list[str] = []
    # Users write the changes of a phase beside its steps.
    for part in (str(each) for each in place if each not in ("changes", "[key]")):
        known = {each.name for kind in _holders(path, owner) for each in fields(kind)}
        tags = {getattr(kind, "rule", None) for kind in _holders(path, owner)}
        if part not in known and part in tags:
            continue
        path.append(part)
    return path


def _holders(path: Sequence[str], owner: type) -> Iterator[type]:
    """The dataclasses that a group of that name may be."""
    if not path:
        yield owner
        return
    for kind in _holders(path[:-1], owner):
        hints = typing.get_type_hints(kind, include_extras=True)
        if path[-1] in hints:
            yield from owners(hints[path[-1]])
