"""This file holds how near a model's tokens are to another hard choice: of experts, or of the step to leave a loop at.

A difference of 1e-7 can turn a rounding the other way, that moves what a router sees by 1e-2, and a token that was as
near to another expert then gets it: its logits differ by 0.05 to 0.5, and both are the model's. Such a token is told
from a mistake by its margin.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.model import forward
from nanochat.ops import Ops
from nanochat.weights import Weights

__all__ = ["NEAR", "chooses", "logits_and_margins"]

# Margins, in relative errors of the logits, below which a choice may fall the other way: of 150 tokens of random models
# whose choices differed between two backends, all were below 2 times the tolerance.
NEAR = 2.0


def chooses(config: ModelConfig) -> bool:
    """Whether tokens of such a model choose among experts, or when to leave a loop."""
    leaves = config.loop_count > 1 and config.exit_threshold < 1.0
    return leaves or 0 < config.experts_per_token < config.num_experts


def logits_and_margins(
    ids: NDArray[np.int64],
    weights: Weights[Any],
    config: ModelConfig,
    ops: Ops[Any, Any, Any],
    *,
    observe: Callable[[Any], None] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Logits after every token of whole sequences (B, T), and its margin, (B, T): infinite where nothing is chosen.

    A margin is the smallest over all choices of a token. Of experts, it is the gap between the last that is taken and
    the first that is not, over the RMS of the router's logits; of a loop, that between the logits of the survival and
    of the threshold, over the survival's or 1. `weights` are prepared for `ops`; `observe` is as for `forward`.
    """
    watching: Any = _Watching(ops)
    logits = ops.numpy(forward(ops.tokens(ids), weights, config, watching, observe=observe))
    margins = np.full(ids.shape, np.inf)
    for margin in watching.margins:
        margins = np.minimum(margins, margin)
    return logits, margins


class _Watching:
    """A backend that notes the margins of choices on their way."""

    def __init__(self, ops: Ops[Any, Any, Any]) -> None:
        self._ops = ops
        self.margins: list[NDArray[np.float64]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def experts(self, x: Any, logits: Any, networks: Any, *, top_k: int, **options: Any) -> Any:
        scores = self._ops.numpy(logits).astype(np.float64)
        if top_k < scores.shape[-1]:
            ranked = np.sort(scores, axis=-1)[..., ::-1]
            scale = np.sqrt(np.square(scores).mean(axis=-1))
            self.margins.append(_over(ranked[..., top_k - 1] - ranked[..., top_k], scale))
        return self._ops.experts(x, logits, networks, top_k=top_k, **options)

    def loop(self, x: Any, step: Any, survive: Any, finish: Any, **options: Any) -> Any:
        limit = _logit(np.array(1 - options["threshold"]))

        def watched(x: Any, previous: Any) -> Any:
            survival = survive(x, previous)
            found = _logit(self._ops.numpy(survival)[..., 0].astype(np.float64))
            self.margins.append(np.abs(found - limit) / np.maximum(1, np.abs(found)))
            return survival

        return self._ops.loop(x, step, watched, finish, **options)


def _over(gap: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    # Logits that are all 0 choose by the order of the experts, which nothing turns.
    infinite: NDArray[np.float64] = np.full(gap.shape, np.inf)
    return np.divide(gap, scale, out=infinite, where=scale > 0)


def _logit(share: NDArray[np.float64]) -> NDArray[np.float64]:
    tiny = np.finfo(np.float64).tiny
    logit: NDArray[np.float64] = np.log(np.maximum(share, tiny)) - np.log(
        np.maximum(1 - share, tiny)
    )
    return logit
