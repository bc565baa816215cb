"""This file holds the settings of a run by their names, as users write them: ``steps``, ``optimizer.norms.rate``.

What each of them means, their docstrings say.
"""

import dataclasses
import inspect
import json
import typing
from collections.abc import Iterator

from nanochat.config import check_field
from nanochat.errors import ConfigError, nearest
from nanochat.training.checks import check_value, owners
from nanochat.training.flat_recipe import NEW_NAMES
from nanochat.training.recipe import Recipe
from nanochat.training.roles import ROLES, OptimizerSettings, rule_of
from nanochat.training.rules.muon import Muon
from nanochat.training.rules.rule import SETTINGS

__all__ = ["SettingGroup", "change_setting", "setting_groups", "titles"]

_ROLES = {f"optimizer.{role}.": role for role in ROLES}


def _groups() -> dict[str, type]:
    """The dataclass of each group of settings but the rules, by what stands before their names."""
    found: dict[str, type] = {"": Recipe}
    for each in dataclasses.fields(Recipe):
        kinds = owners(typing.get_type_hints(Recipe, include_extras=True)[each.name])
        found |= {f"{each.name}.": kind for kind in kinds}
    return found


_OWNERS = _groups()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingGroup:
    """Settings that are explained together, as NAME=VALUE with their defaults; one without a default has no value."""

    names: str
    kind: str
    meaning: str


def change_setting(fields: dict[str, object], name: str, value: object) -> None:
    """Put a setting into the fields of a recipe, if there is such a one and it may be of that value."""
    group, _, last = name.rpartition(".")
    prefix = f"{group}." if group else ""
    if prefix in _ROLES:
        _change_rule(fields, prefix, last, value)
        return
    if f"{name}." in _OWNERS or f"{name}." in _ROLES:
        raise ConfigError(f"{name} is a group of settings: write one of them, {name}.NAME")
    if prefix not in _OWNERS or last not in _names(_OWNERS[prefix]):
        raise _unknown(name)
    if prefix == "model.":
        check_field(last, tuple(value) if isinstance(value, list) else value)
    else:
        check_value(_OWNERS[prefix], name, value)
    _inner(fields, group)[last] = value


def setting_groups(prefix: str) -> Iterator[SettingGroup]:
    """The settings with a prefix of `titles`, in the order of their docstring, behind what all of their kind have."""
    owner = SETTINGS[prefix] if prefix in SETTINGS else _OWNERS[prefix]
    lines: list[str] = []
    for kind_of in filter(dataclasses.is_dataclass, reversed(owner.__mro__)):
        text = inspect.getdoc(kind_of) or ""
        lines += text.partition("Parameters\n----------\n")[2].partition("\n\n")[0].splitlines()
    names = kind = ""
    meaning: list[str] = []
    for line in [*lines, ""]:
        if line.startswith(" "):
            meaning.append(line.strip())
            continue
        if names:
            yield SettingGroup(names=names, kind=kind, meaning=" ".join(meaning))
        listed, _, kind = line.partition(" : ")
        parts = [_with_defaults(prefix, name) for name in listed.split(", ") if name]
        names = ", ".join(parts)
        meaning = []


def titles() -> Iterator[tuple[str, str]]:
    """What stands before the names of each group, and the first line of what is said of it."""
    # The model's are as many as all others.
    ordered = sorted({**_OWNERS, **SETTINGS}.items(), key=lambda each: each[0] == "model.")
    for prefix, owner in ordered:
        yield prefix, (inspect.getdoc(owner) or "").partition("\n")[0]


def _change_rule(fields: dict[str, object], prefix: str, name: str, value: object) -> None:
    default = rule_of(OptimizerSettings(), _ROLES[prefix])
    found = _inner(_inner(fields, "optimizer"), _ROLES[prefix])
    rule = SETTINGS.get(str(found.get("rule", default.rule)), type(default))
    if name == "rule":
        if not isinstance(value, str) or value not in SETTINGS:
            raise ConfigError(f"{prefix}rule={value!r:.80}: choose one of {list(SETTINGS)}")
        if value != rule().rule:
            # Numbers of another rule are none of this one.
            found.clear()
        found["rule"] = value
        return
    if name not in _names(rule):
        others = [word for word, other in SETTINGS.items() if name in _names(other)]
        hint = f": set {prefix}rule={others[0]} first" if others else f": it has {_names(rule)}"
        raise ConfigError(f"{rule().rule} has no {name!r:.80}, which {prefix}{name} sets{hint}")
    check_value(rule, prefix + name, value)
    found[name] = value


def _inner(fields: dict[str, object], group: str) -> dict[str, object]:
    inner = fields.setdefault(group, {}) if group else fields
    if not isinstance(inner, dict):
        raise ConfigError(f"{group}={inner!r:.80}: must be a group of settings in the recipe")
    return inner


def _names(owner: type) -> list[str]:
    return [each.name for each in dataclasses.fields(owner)]


def _unknown(name: str) -> ConfigError:
    known = [
        prefix + each
        for prefix, owner in _OWNERS.items()
        for each in _names(owner)
        if f"{prefix}{each}." not in {**_OWNERS, **_ROLES}
    ]
    known += [f"{prefix}{each}" for prefix in _ROLES for each in _names(Muon)]
    # Some leave out, or mistake, what stands before the last point.
    full = {each.rpartition(".")[2]: each for each in reversed(known)}
    last = name.rpartition(".")[2]
    endings = [each.rpartition(".")[2] for each in known]
    near = (
        NEW_NAMES.get(name, (None,))[0]
        or (full[last] if endings.count(last) == 1 else None)
        or nearest(name, known)
        or full.get(nearest(last, full))
    )
    hint = f" (did you mean {near}?)" if near else ""
    return ConfigError(
        f"there is no setting {name!r:.80}{hint}: `nanochat train --settings` lists them all"
    )


def _with_defaults(prefix: str, name: str) -> str:
    """A setting with its default, or a role with all of its rule's."""
    if f"{prefix}{name}." in _ROLES:
        rule = rule_of(OptimizerSettings(), _ROLES[f"{prefix}{name}."])
        return f"{prefix}{name}.rule={rule.rule}, {prefix}{name}.rate={rule.rate:g}"
    owner = SETTINGS[prefix] if prefix in SETTINGS else _OWNERS[prefix]
    (found,) = (each for each in dataclasses.fields(owner) if each.name == name)
    before = "optimizer.ROLE." if prefix in SETTINGS else prefix
    if found.default is dataclasses.MISSING:
        return before + name
    default = found.default
    return f"{before}{name}={default if isinstance(default, str) else json.dumps(default)}"
