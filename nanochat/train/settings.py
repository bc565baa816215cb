"""This file holds the settings of a run by their names, as users write them: ``steps``, ``model.width``.

What each of them means, their docstrings say.
"""

import dataclasses
import inspect
import json
from collections.abc import Iterator

from nanochat.config import ModelConfig, check_field
from nanochat.errors import ConfigError, nearest
from nanochat.train.loss import Objective
from nanochat.train.recipe import Recipe, check_setting

__all__ = ["SettingGroup", "change_setting", "setting_groups"]

_OWNERS: dict[str, type[Recipe | Objective | ModelConfig]] = {
    "": Recipe,
    "objective.": Objective,
    "model.": ModelConfig,
}
_DEFAULTS = {
    prefix + field.name: field.default
    for prefix, owner in _OWNERS.items()
    for field in dataclasses.fields(owner)
    if f"{field.name}." not in _OWNERS
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingGroup:
    """Settings that are explained together, as NAME=VALUE with their defaults; one without a default has no value."""

    names: str
    kind: str
    meaning: str


def change_setting(fields: dict[str, object], name: str, value: object) -> None:
    """Put a setting into the fields of a recipe, if there is such a one and it may be of that value."""
    if name not in _DEFAULTS:
        if f"{name}." in _OWNERS:
            raise ConfigError(f"{name} is a group of settings: write one of them, {name}.NAME")
        # Some leave out, or mistake, what stands before the point.
        full = {known.rpartition(".")[2]: known for known in reversed(_DEFAULTS)}
        last = name.rpartition(".")[2]
        near = full.get(last) or nearest(name, _DEFAULTS) or full.get(nearest(last, full))
        hint = f" (did you mean {near}?)" if near else ""
        raise ConfigError(
            f"there is no setting {name!r:.80}{hint}: `nanochat train --settings` lists them all"
        )
    group, _, name = name.rpartition(".")
    if group == "model":
        check_field(name, tuple(value) if isinstance(value, list) else value)
    else:
        check_setting(Objective if group else Recipe, name, value)
    inner = fields.setdefault(group, {}) if group else fields
    if not isinstance(inner, dict):
        raise ConfigError(f"{group}={inner!r:.80}: must be a group of settings in the recipe")
    inner[name] = value


def setting_groups(prefix: str) -> Iterator[SettingGroup]:
    """The settings with a prefix, "", "objective." or "model.", in the order of their docstring."""
    text = inspect.getdoc(_OWNERS[prefix]) or ""
    section = text.partition("Parameters\n----------\n")[2].partition("\n\n")[0]
    names = kind = ""
    meaning: list[str] = []
    for line in [*section.splitlines(), ""]:
        if line.startswith(" "):
            meaning.append(line.strip())
            continue
        if names:
            yield SettingGroup(names=names, kind=kind, meaning=" ".join(meaning))
        listed, _, kind = line.partition(" : ")
        names = ", ".join(_with_default(prefix + name) for name in listed.split(", ") if name)
        meaning = []


def _with_default(name: str) -> str:
    default = _DEFAULTS[name]
    if default is dataclasses.MISSING:
        return name
    return f"{name}={default if isinstance(default, str) else json.dumps(default)}"
