"""This file holds weights that a run begins with in place of random ones: those of another run, or of a model."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.data.mixture import Mixture
from nanochat.errors import NanochatError, TrainingError
from nanochat.export.formats import load, load_config
from nanochat.init import latent_values, widened
from nanochat.shapes import shapes
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.snapshot import find_snapshot, holds_run, load_record, load_snapshot
from nanochat.weights import Spec, Stored, Weights, leaf_of, map_leaves, named_leaves

__all__ = ["Beginning", "begin_with", "config_of"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """Weights, and the fingerprint of the tokenizer that they know, as far as it is known."""

    weights: Weights[Stored]
    tokenizer: str | None

    def require_tokenizer(self, data: Mixture) -> None:
        """Refuse data of another tokenizer, whose tokens mean something else."""
        if self.tokenizer not in (None, data.tokenizer.fingerprint):
            raise TrainingError(
                f"{data} has another tokenizer than the weights that the run begins with: prepare it again with "
                "--tokenizer and the directory of their model"
            )


def config_of(path: Path) -> ModelConfig:
    """The configuration of the model in the directory of a run, of its snapshot or of a model."""
    return load_record(path).recipe.model if _is_snapshot(path) else load_config(path)


def begin_with(path: Path, config: ModelConfig, *, rounds: bool = True) -> Beginning:
    """Read the weights in the directory of a run, of its snapshot or of a model, for a model of that configuration.

    A run has the numbers that it rounds; of a model these are some that round to what it has, or, for a run that
    does not round, just those that it has. What the configuration has no place
    for, such as heads for later tokens, is left out with a warning.

    Raises
    ------
    TrainingError
        If they are of another model.
    """
    found: Mapping[str, NDArray[np.float32]]
    if _is_snapshot(path):
        parameters = load_snapshot(path).parameters
        found = {name: values.float().numpy() for name, values in parameters.items()}
        folder = find_snapshot(path).parents[1] / "model"
        tokenizer = Tokenizer.load(folder).fingerprint if folder.is_dir() else None
    else:
        bundle = load(path)
        values_of = latent_values if rounds else widened
        found = {name: values_of(name, leaf) for name, leaf in named_leaves(bundle.weights)}
        known = bundle.tokenizer
        tokenizer = known.fingerprint if isinstance(known, Tokenizer) else None

    def leaf(name: str, spec: Spec) -> Stored:
        values = found.get(name)
        if values is None or values.shape != spec.shape:
            has = "none" if values is None else f"one of shape {values.shape}"
            raise TrainingError(
                f"the model has {name} of shape {spec.shape}, and {path} has {has}: leave out --preset, and the "
                "settings of the model are those of its weights"
            )
        return leaf_of(spec, values)

    model = shapes(config)
    if rest := found.keys() - dict(named_leaves(model)).keys():
        _LOGGER.warning(
            "%s has parameters that the model has not: %s are left out",
            path,
            shorten(", ".join(sorted(rest)), 200),
        )
    return Beginning(weights=map_leaves(leaf, model), tokenizer=tokenizer)


def _is_snapshot(path: Path) -> bool:
    if not path.is_dir():
        raise TrainingError(
            f"{path} is no directory: pass that of a run, of a snapshot, or of a model to begin with"
        )
    if holds_run(path):
        return True
    try:
        find_snapshot(path)
    except NanochatError:
        return False
    return True
