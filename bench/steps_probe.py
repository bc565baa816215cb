"""This file holds the program that `bench.steps` runs for one step of training: ``KIND DATA``, a line of JSON out.

Kinds are "layers" and "whole" of `tiny`, whose first step compiles, and "kept" and "again" of nano-125m.
"""

import json
import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from nanochat.config import config_to_dict
from nanochat.model import run_layer
from nanochat.presets import preset
from nanochat.training.layers import compiling
from nanochat.training.loop import Trainer
from nanochat.training.recipe import Recipe, recipe_from_dict

__all__ = ["settings", "with_whole_pass"]


def settings(kind: str = "layers", **changes: Mapping[str, object]) -> Recipe:
    """The recipe of a kind, with groups that are changed setting by setting."""
    large = kind in ("kept", "again")
    groups: dict[str, dict[str, object]] = {
        "model": config_to_dict(preset("nano-125m" if large else "tiny")),
        "data": {"batch_size": 8, "length": 1024 if large else 512},
        "precision": {"products": "float32"},
        "run": {"activation_checkpointing": kind == "again"},
    }
    for group, values in changes.items():
        groups[group] = {**groups[group], **values}
    return recipe_from_dict({**groups, "steps": 10**6})


def with_whole_pass(trainer: Trainer) -> Trainer:
    """The run with its layers, losses and all compiled as one function, as it was before layers were."""
    trainer.model.layer = run_layer
    trainer._terms = torch.compile(trainer._terms)  # type: ignore[method-assign]
    return trainer


def _main(kind: str, data: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings(kind), Path(data), Path(folder))
        if kind == "whole":
            with_whole_pass(trainer)
        before = _cpu_seconds()
        with compiling():
            trainer._advance()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"cpu_seconds": _cpu_seconds() - before, "bytes": peak}))


def _cpu_seconds() -> float:
    """Of this process and of those that it waited for, such as a compiler."""
    uses = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


if __name__ == "__main__":
    _main(*sys.argv[1:])
