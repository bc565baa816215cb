"""This file holds what is known of a model's training: from ``recipe.json`` in its directory, or the log beside it.

`nanochat train` writes ``model/`` and ``log.jsonl`` into the directory of a run.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from nanochat.config import ModelConfig, config_to_dict
from nanochat.errors import FormatError
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
    log = folder.resolve().parent / _LOG
    training = Training()
    if folder.resolve().name == _MODEL and exists(log):
        training = _read_log(log, config)
    path = folder / RECIPE
    if not exists(path):
        return training
    recipe = parse_json(read_bytes(path, limit=_MAX_RECIPE_BYTES), str(path))
    return Training(recipe=recipe, evaluations=training.evaluations)


def _read_log(path: Path, config: ModelConfig) -> Training:
    recipe: Mapping[str, object] = {}
    result: float | None = None
    step: object = None
    for line in read_bytes(path, limit=_MAX_LOG_BYTES).splitlines():
        fields = parse_json(line, str(path))
        step = fields.get("step", step)
        match fields:
            case {"recipe": dict(recipe)}:
                pass
            case {"held_out_bits_per_byte": float(result)}:
                pass
    if not recipe:
        return Training()
    if recipe.get("model") != json.loads(json.dumps(config_to_dict(config))):
        _LOGGER.warning(
            "%s is of another model than this one, and the card does not tell of it", path
        )
        return Training()
    if not isinstance(step, int):
        raise FormatError(
            f"{path}: {step!r:.40} is no number of a step; correct it, or move it away"
        )
    # A run that was resumed may have ended at another step than its first line says.
    recipe = {**recipe, "steps": step}
    if result is None:
        return Training(recipe=recipe)
    return Training(recipe=recipe, evaluations=[replace(HELD_OUT, value=result)])
