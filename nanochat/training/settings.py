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

__all__ = ["TRAINING", "SettingGroup", "Settings"]

_ROLES = {f"optimizer.{role}.": role for role in ROLES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingGroup:
    """Settings that are explained together, as NAME=VALUE with their defaults; one without a default has no value."""

    names: str
    kind: str
    meaning: str


class Settings:
    """All settings of a kind of recipe.

    Parameters
    ----------
    recipe : type
        A dataclass whose fields are settings, or groups of them, which are dataclasses; `optimizer` is one.
    command : str
        What runs it, which lists them with ``--settings``.
    """

    def __init__(self, recipe: type, command: str) -> None:
        self._command = command
        # The dataclass of each group but the rules, by what stands before the names of its settings.
        self._owners: dict[str, type] = {"": recipe}
        for each in dataclasses.fields(recipe):
            kinds = owners(typing.get_type_hints(recipe, include_extras=True)[each.name])
            self._owners |= {f"{each.name}.": kind for kind in kinds}
        (optimizer,) = (each for each in dataclasses.fields(recipe) if each.name == "optimizer")
        assert callable(optimizer.default_factory)
        self._optimizer: OptimizerSettings = optimizer.default_factory()

    def change(self, fields: dict[str, object], name: str, value: object) -> None:
        """Put a setting into the fields of a recipe, if there is such a one and it may be of that value."""
        group, _, last = name.rpartition(".")
        prefix = f"{group}." if group else ""
        if prefix in _ROLES:
            self._change_rule(fields, prefix, last, value)
            return
        if f"{name}." in self._owners or f"{name}." in _ROLES:
            raise ConfigError(f"{name} is a group of settings: write one of them, {name}.NAME")
        if prefix not in self._owners or last not in _names(self._owners[prefix]):
            raise self._unknown(name)
        if prefix == "model.":
            check_field(last, tuple(value) if isinstance(value, list) else value)
        else:
            check_value(self._owners[prefix], name, value)
        _inner(fields, group)[last] = value

    def groups(self, prefix: str) -> Iterator[SettingGroup]:
        """The settings with a prefix of `titles`, in the order of their docstring, behind what all of a kind have."""
        owner = SETTINGS[prefix] if prefix in SETTINGS else self._owners[prefix]
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
            parts = [self._with_defaults(prefix, name) for name in listed.split(", ") if name]
            names = ", ".join(parts)
            meaning = []

    def titles(self) -> Iterator[tuple[str, str]]:
        """What stands before the names of each group, and the first line of what is said of it."""
        # The model's are as many as all others.
        ordered = sorted({**self._owners, **SETTINGS}.items(), key=lambda each: each[0] == "model.")
        for prefix, owner in ordered:
            yield prefix, (inspect.getdoc(owner) or "").partition("\n")[0]

    def _change_rule(
        self, fields: dict[str, object], prefix: str, name: str, value: object
    ) -> None:
        default = rule_of(self._optimizer, _ROLES[prefix])
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

    def _unknown(self, name: str) -> ConfigError:
        known = [
            prefix + each
            for prefix, owner in self._owners.items()
            for each in _names(owner)
            if f"{prefix}{each}." not in {**self._owners, **_ROLES}
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
            f"there is no setting {name!r:.80}{hint}: `{self._command} --settings` lists them all"
        )

    def _with_defaults(self, prefix: str, name: str) -> str:
        """A setting with its default, or a role with all of its rule's."""
        if f"{prefix}{name}." in _ROLES:
            rule = rule_of(self._optimizer, _ROLES[f"{prefix}{name}."])
            return f"{prefix}{name}.rule={rule.rule}, {prefix}{name}.rate={rule.rate:g}"
        owner = SETTINGS[prefix] if prefix in SETTINGS else self._owners[prefix]
        (found,) = (each for each in dataclasses.fields(owner) if each.name == name)
        before = "optimizer.ROLE." if prefix in SETTINGS else prefix
        if found.default is dataclasses.MISSING:
            return before + name
        default = found.default
        return f"{before}{name}={default if isinstance(default, str) else json.dumps(default)}"


def _inner(fields: dict[str, object], group: str) -> dict[str, object]:
    inner = fields.setdefault(group, {}) if group else fields
    if not isinstance(inner, dict):
        raise ConfigError(f"{group}={inner!r:.80}: must be a group of settings in the recipe")
    return inner


def _names(owner: type) -> list[str]:
    return [each.name for each in dataclasses.fields(owner)]


TRAINING = Settings(Recipe, "nanochat train")
