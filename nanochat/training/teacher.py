"""This file holds the teacher that is the run's own model at the end of an earlier phase."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from nanochat.backends.torch.ops import TorchOps
from nanochat.errors import ConfigError, TrainingError
from nanochat.files import atomic_write
from nanochat.training.frozen import FrozenModel
from nanochat.training.module import LanguageModel
from nanochat.training.phases import Stage

__all__ = ["PhaseTeacher", "require_teacher"]


class PhaseTeacher:
    """The model that a run has at the end of a phase, in a file of the run's directory.

    Attributes
    ----------
    stage : Stage
        The phase.
    """

    def __init__(self, directory: Path, stage: Stage) -> None:
        self.stage = stage
        self._file = directory / "teacher.safetensors"

    def save(self, model: LanguageModel) -> None:
        """Write the latent parameters."""
        parameters = {name: p.detach().contiguous() for name, p in model.named_parameters()}
        atomic_write(self._file, save(parameters))

    def load(self, model: LanguageModel) -> FrozenModel:
        """The model of that phase, in the shape and on the device of the one in training.

        Raises
        ------
        TrainingError
            If the file is not there, or not of that model.
        """
        recipe = self.stage.recipe
        ops = TorchOps(str(model.ops.device), getattr(torch, recipe.precision.products))
        teacher = LanguageModel(model.config, model.stored(), ops, recipe.precision.weights)
        try:
            teacher.load_state_dict(load_file(self._file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise TrainingError(
                f"{self._file} is not the model of the end of teacher.phase, step {self.stage.end}: start from a "
                "snapshot of that step or an earlier one"
            ) from error
        return FrozenModel.of(teacher)


def require_teacher(stages: Sequence[Stage]) -> None:
    """Refuse phases that learn from a teacher without one, or a teacher that none learns from.

    Raises
    ------
    ConfigError
        If they do, or the phase that is the teacher does not come before them.
    """
    teacher = stages[0].recipe.teacher
    learning = [n for n, s in enumerate(stages, 1) if s.recipe.objective.distillation]
    said = [
        f"teacher.{field.name}={getattr(teacher, field.name)!r}"
        for field in fields(teacher)
        if getattr(teacher, field.name)
    ]
    if len(said) > 1:
        raise ConfigError(f"{' and '.join(said)}: choose one teacher, and leave out the other")
    if learning and not said:
        raise ConfigError(
            f"objective.distillation={stages[learning[0] - 1].recipe.objective.distillation:g} has no teacher: set "
            "teacher.model to a directory or a name, or teacher.phase=1 in phases after the first"
        )
    if said and not learning:
        raise ConfigError(
            f"{said[0]} teaches nothing: set objective.distillation=1, say, or leave it out"
        )
    if teacher.phase and learning[0] <= teacher.phase:
        raise ConfigError(
            f"teacher.phase={teacher.phase} does not end before phase {learning[0]} learns from it: set "
            "objective.distillation in later phases only"
        )
