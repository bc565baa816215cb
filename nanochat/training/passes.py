"""This file holds the pass of a batch through a model in training, and through others that its objective asks."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from nanochat.errors import ConfigError
from nanochat.text.codec import TextCodec
from nanochat.training.frozen import FrozenModel
from nanochat.training.loss import terms
from nanochat.training.module import LanguageModel
from nanochat.training.objectives.settings import Objective
from nanochat.training.phases import Stage

__all__ = ["Passes"]


class Passes:
    """What gives the terms of a batch; other models that phases of the run ask are loaded before its first step.

    Raises
    ------
    ConfigError
        If one cannot serve, or no phase asks for it.
    """

    def __init__(self, stages: Sequence[Stage], tokenizer: TextCodec, *, device: str) -> None:
        recipe = stages[0].recipe
        length = max(stage.recipe.data.length for stage in stages)
        self._reference: FrozenModel | None = None
        if recipe.reference.model:
            if all(stage.recipe.objective.keep_tokens == 1 for stage in stages):
                raise ConfigError(
                    f"reference.model={recipe.reference.model!r} chooses no tokens while all are kept: set "
                    "objective.keep_tokens=0.5, say, or leave it out"
                )
            self._reference = FrozenModel.load(
                recipe.reference.model,
                tokenizer,
                setting="reference.model",
                length=length,
                device=device,
            )

    def terms(
        self,
        model: LanguageModel,
        objective: Objective,
        tokens: Tensor,
        targets: Tensor,
        rows: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What `nanochat.training.loss.terms` gives for a batch."""
        reference = None
        if self._reference is not None and objective.keep_tokens < 1:
            reference = self._reference.losses(tokens, targets)
        loss = partial(
            terms,
            ops=model.ops,
            objective=objective,
            top_k=model.config.experts_per_token,
            rows=rows,
            reference=reference,
        )
        found: dict[str, Tensor] = model(tokens, loss, targets)
        return found
