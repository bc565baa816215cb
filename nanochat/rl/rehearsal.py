"""This file holds rehearsal: texts that a model wrote before it learnt, by which it is kept from forgetting.

References
----------
.. [1] A. Robins, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal", Connection Science 7(2), 1995, section 4: a
   network's own outputs in place of the data that it learnt from.
.. [2] L. Ouyang et al., "Training language models to follow instructions with human feedback", 2022, section 3.5.
   arXiv:2203.02155: policies that go on learning texts beside their reward.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.backends.torch.linears import Leaf
from nanochat.backends.torch.ops import TorchOps
from nanochat.evaluation.completing import seed_of
from nanochat.generation.engine import Runner
from nanochat.generation.prompts import encode_prompt
from nanochat.generation.session import Session
from nanochat.model import TrainingOutputs
from nanochat.text.codec import TextCodec
from nanochat.training.frozen import FrozenModel
from nanochat.training.objectives.readout import Readout
from nanochat.training.objectives.tokens import divergences

__all__ = ["Rehearsal", "divergence"]

_TEXTS, _LENGTH = 128, 128


class Rehearsal:
    """Texts of a model as it was before a run, and its distributions of their tokens.

    Parameters
    ----------
    engine : Runner
        The model, which writes them.
    start : FrozenModel
        The same model.
    seed : int
        That of the run, which the texts follow from.
    """

    def __init__(
        self, engine: Runner[Any], tokenizer: TextCodec, start: FrozenModel, seed: int
    ) -> None:
        self._start, self._seed = start, seed
        ids = encode_prompt("\n", tokenizer)
        length = min(_LENGTH, engine.config.context_length)
        session = Session(engine, tokenizer, rows=_TEXTS, capacity=length)
        rows = session.add(
            ids,
            n=_TEXTS,
            seed=[seed_of(seed, "rehearsal", number) for number in range(_TEXTS)],
            temperature=1.0,
            max_tokens=length - len(ids),
        )
        texts = {row: [*ids] for row in rows}
        while not session.is_idle:
            for piece in session.step():
                if piece.error is not None:
                    raise piece.error
                texts[piece.row].append(piece.token)
        self._tokens = np.zeros((_TEXTS, length - 1), np.int64)
        self._targets = np.full((_TEXTS, length - 1), -1)
        for row, text in enumerate(texts.values()):
            self._tokens[row, : len(text) - 1] = text[:-1]
            self._targets[row, : len(text) - 1] = text[1:]

    def of_step(self, step: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Tokens and targets (B, T) of some of the texts, one at least."""
        length = self._tokens.shape[1]
        generator = np.random.default_rng(seed_of(self._seed, "rehearsed", step))
        count = min(_TEXTS, max(1, num_tokens // length))
        rows = generator.choice(_TEXTS, count, replace=False)
        tokens, targets = (
            torch.from_numpy(self._tokens[rows]),
            torch.from_numpy(self._targets[rows]),
        )
        return tokens.to(self._start.device), targets.to(self._start.device)


def divergence(
    outputs: TrainingOutputs[Tensor, Leaf],
    targets: Tensor,
    tokens: Tensor,
    start: FrozenModel,
    ops: TorchOps,
) -> Tensor:
    """Nats of a model's distributions from those of `start`, the mean over tokens that have a target."""
    readout = Readout(ops=ops, table=outputs.table, targets=targets)
    found = readout.read(outputs.steps[-1], teaching=start.teaching(tokens, 1.0))
    return readout.weighed(divergences(found)).sum()
