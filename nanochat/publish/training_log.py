"""This file holds what is known of a model's training: from ``recipe.json`` in its directory, or the log beside it.

`nanochat train` writes ``model/`` and ``log.jsonl`` into the directory of a run.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat.config import ModelConfig, config_from_dict
from nanochat.errors import ConfigError
from nanochat.files import exists, parse_json, read_bytes
from nanochat.publish.metadata import HELD_OUT
from nanochat.publish.options import Evaluation

__all__ = ["RECIPE", "Training", "read_training"]

RECIPE = "recipe.json"
_LOG, _MODEL = "log.jsonl", "model"
_MAX_RECIPE_BYTES = 2**20
# A line for each step: 200 bytes each, and a million steps.
_MAX_LOG_BYTES = 2**30
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model was trained, and what it reached; empty for what is not known."""

    recipe: Mapping[str, object] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()


def read_training(folder: Path, config: ModelConfig) -> Training:
    """Read what lies in a model's directory, or else beside it."""
    training = Training()
    path, log = folder / RECIPE, folder.resolve().parent / _LOG
    if folder.resolve().name == _MODEL and exists(log):
        training = _read_log(log, config)
    if exists(path):
        recipe = parse_json(read_bytes(path, limit=_MAX_RECIPE_BYTES), str(path))
        training = replace(training, recipe=recipe)
    return training


def _read_log(path: Path, config: ModelConfig) -> Training:
    """What the lines say with which a run begins and ends."""
    lines = read_bytes(path, limit=_MAX_LOG_BYTES).splitlines() or [b"{}"]
    first = last = parse_json(lines[0], str(path))
    for line in reversed(lines):
        last = parse_json(line, str(path))
        # What is said of an evaluation stands behind it.
        if "anomaly" not in last:
            break
    match first, last:
        case (
            {"recipe": dict(recipe)},
            {"step": int(step), "held_out_bits_per_byte": float(value)},
        ) if _is_of(recipe.get("model"), config):
            # A run that was resumed may have ended at another step than its first line says.
            return Training(
                recipe={**recipe, "steps": step}, evaluations=[replace(HELD_OUT, value=value)]
            )
    _LOGGER.warning(
        "%s is of another model than this one, or of a run that has not ended, and the card does not tell of it",
        path,
    )
    return Training()


def _is_of(fields: object, config: ModelConfig) -> bool:
    """Whether a configuration in a log is this one, where fields that were added later have their defaults."""
    try:
        return isinstance(fields, dict) and config_from_dict(fields) == config
    except ConfigError:
        return False
