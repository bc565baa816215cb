"""This file holds the pass of a batch through a model in training, and through others that its objective asks."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.backends.torch.ops import TorchOps
from nanochat.errors import ConfigError
from nanochat.text.codec import TextCodec
from nanochat.training.frozen import FrozenModel
from nanochat.training.loss import choose_tokens, terms
from nanochat.training.module import LanguageModel
from nanochat.training.objectives.filtering import FilteringOps
from nanochat.training.objectives.settings import Objective
from nanochat.training.phases import Stage
from nanochat.training.stored_logits import StoredLogits
from nanochat.training.teacher import PhaseTeacher, require_teacher

__all__ = ["Passes"]


class Passes:
    """What gives the terms of a batch; other models that phases of the run ask are loaded before its first step.

    Parameters
    ----------
    directory : Path
        Of the run, where it keeps the model of an earlier phase.

    Raises
    ------
    ConfigError
        If a model cannot serve, or no phase asks for it.
    """

    def __init__(
        self, stages: Sequence[Stage], tokenizer: TextCodec, *, directory: Path, device: str
    ) -> None:
        recipe = stages[0].recipe
        length = max(stage.recipe.data.length for stage in stages)
        load = partial(FrozenModel.load, tokenizer=tokenizer, length=length, device=device)
        self._reference: FrozenModel | None = None
        self._teacher: FrozenModel | StoredLogits | None = None
        self._earlier: PhaseTeacher | None = None
        self._filtered: FilteringOps | None = None
        require_teacher(stages)
        if recipe.reference.model:
            if all(stage.recipe.objective.keep_tokens == 1 for stage in stages):
                raise ConfigError(
                    f"reference.model={recipe.reference.model!r} chooses no tokens while all are kept: set "
                    "objective.keep_tokens=0.5, say, or leave it out"
                )
            self._reference = load(recipe.reference.model, setting="reference.model")
        if recipe.teacher.model:
            self._teacher = found = load(recipe.teacher.model, setting="teacher.model")
            theirs, ours = found.config.vocab_size, recipe.model.vocab_size
            if theirs != ours:
                raise ConfigError(
                    f"teacher.model={recipe.teacher.model!r} has logits of {theirs} tokens and the model of {ours}: "
                    f"set model.vocab_size={theirs}"
                )
        if recipe.teacher.logits:
            self._teacher = StoredLogits.open(
                Path(recipe.teacher.logits), tokenizer, vocab_size=recipe.model.vocab_size
            )
        if recipe.teacher.phase:
            self._earlier = PhaseTeacher(directory, stages[recipe.teacher.phase - 1])

    def leave(self, stage: Stage, model: LanguageModel) -> None:
        """Keep the model at the end of a phase, if a later one learns from it."""
        if self._earlier is not None and self._earlier.stage.first == stage.first:
            self._earlier.save(model)
            self._teacher = None

    def terms(
        self,
        model: LanguageModel,
        objective: Objective,
        tokens: Tensor,
        targets: Tensor,
        segments: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What `nanochat.training.loss.terms` gives for a batch."""
        if objective.exits == "improvement":
            # Nothing but the gate is minimised, which asks no other model.
            objective = replace(
                objective, keep_tokens=1, drop_attention_gradients=False, distillation=0, ahead=0
            )
        reference = teaching = None
        if self._reference is not None and objective.keep_tokens < 1:
            reference = self._reference.losses(tokens, targets, segments)
        if objective.distillation:
            teaching = self._taught(model).teaching(tokens, objective.temperature, segments)
        given: dict[str, Any] = {"ops": model.ops, "objective": objective, "rows": rows}
        given |= {"reference": reference, "segments": segments}
        ops = kept = None
        if objective.drop_attention_gradients:
            with torch.no_grad():
                choose = partial(choose_tokens, **given)
                kept = model(tokens, choose, targets, segments=segments, has_heads=False)
            ops = self._filtering(model.ops)
            ops.is_kept = kept.mask(targets.shape)
        top_k = model.config.experts_per_token
        loss = partial(terms, **given, top_k=top_k, kept=kept, teaching=teaching)
        found: dict[str, Tensor] = model(
            tokens, loss, targets, segments=segments, ops=ops, has_heads=objective.ahead > 0
        )
        return found

    def _filtering(self, ops: TorchOps) -> FilteringOps:
        """One object for all passes of a kind: another would be compiled anew."""
        if self._filtered is None or self._filtered.dtype != ops.dtype:
            self._filtered = FilteringOps(ops.device, ops.dtype)
        return self._filtered

    def _taught(self, model: LanguageModel) -> FrozenModel | StoredLogits:
        if self._teacher is None:
            assert self._earlier is not None
            self._teacher = self._earlier.load(model)
        return self._teacher
