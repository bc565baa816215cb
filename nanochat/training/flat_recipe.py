"""This file holds how recipes are read that were written before their settings stood in groups."""

from collections.abc import Mapping
from typing import Any

from nanochat.errors import ConfigError
from nanochat.training.roles import ROLES

__all__ = ["NEW_NAMES", "nested"]

_TABLES = ("embedding", "head")
_OTHERS = tuple(role for role in ROLES if role not in ("matrices", *_TABLES))

# Where each setting of then stands now.
NEW_NAMES: Mapping[str, tuple[str, ...]] = {
    "batch_size": ("data.batch_size",),
    "length": ("data.length",),
    "warmup_steps": ("schedule.warmup_steps",),
    "decay_steps": ("schedule.decay_steps",),
    "matrix_rate": ("optimizer.matrices.rate",),
    "table_rate": tuple(f"optimizer.{role}.rate" for role in _TABLES),
    "vector_rate": tuple(f"optimizer.{role}.rate" for role in _OTHERS),
    "table_rule": tuple(f"optimizer.{role}.rule" for role in (*_TABLES, *_OTHERS)),
    "weight_decay": ("optimizer.matrices.weight_decay",),
    "clip": ("optimizer.clip",),
    "precision": ("precision.weights",),
    "products": ("precision.products",),
    "evaluate_every": ("run.evaluate_every",),
    "snapshot_every": ("run.snapshot_every",),
    "evaluation_windows": ("run.evaluation_windows",),
}
_GROUPS = {place.partition(".")[0] for places in NEW_NAMES.values() for place in places}


def nested(fields: Mapping[str, object]) -> dict[str, object]:
    """The settings in their groups, wherever they stood.

    Raises
    ------
    ConfigError
        If some are in groups and some are not: then it cannot be told which of both a recipe is.
    """
    old = {
        name: value
        for name, value in fields.items()
        if name in NEW_NAMES and not (name == "precision" and isinstance(value, Mapping))
    }
    found: dict[str, Any] = {name: value for name, value in fields.items() if name not in old}
    if not old:
        return found
    beside = next((each for each in found if each in _GROUPS), None)
    if beside is not None:
        name, value = next(iter(old.items()))
        raise ConfigError(
            f"{name}={value!r:.80} is a name of before there were groups of settings, and cannot stand beside the "
            f"group {beside}: move it to {' and '.join(NEW_NAMES[name])}"
        )
    for name, value in old.items():
        for place in NEW_NAMES[name]:
            *path, last = place.split(".")
            group = found
            for part in path:
                group = group.setdefault(part, {})
            group[last] = value
    if fields.get("table_rule") == "lion":
        # It had AdamW's.
        for role in (*_TABLES, *_OTHERS):
            found["optimizer"][role].update(first_beta=0.9, second_beta=0.95)
    # Nobody measured.
    found.setdefault("precision", {}).setdefault("products", "float32")
    _with_ternary_tables(found, fields.get("model"))
    return found


def _with_ternary_tables(found: dict[str, Any], model: object) -> None:
    """They were updated as matrices."""
    if not isinstance(model, Mapping):
        return
    table = model.get("table_format")
    head = model.get("head_format", "table")
    groups = found.setdefault("optimizer", {})
    for role, form in (("embedding", table), ("head", table if head == "table" else head)):
        if form == "ternary":
            groups[role] = {"rule": "muon", **groups.get("matrices", {})}
