"""This file holds models that a run reads besides its own, without training them: of their losses and distributions."""

from typing import Self

import torch
from torch import Tensor

from nanochat.backends.torch.linears import Leaf, rounded_activations, rows_of
from nanochat.backends.torch.loss import Teaching
from nanochat.backends.torch.ops import TorchOps
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
from nanochat.generation.engine import Engine
from nanochat.lm import from_pretrained
from nanochat.model import hidden_states
from nanochat.text.codec import TextCodec
from nanochat.training.module import LanguageModel
from nanochat.weights import Weights

__all__ = ["FrozenModel"]


class FrozenModel:
    """A model that is only read, on the device of a run.

    Parameters
    ----------
    weights : tree of leaves
        As `ops` takes them, without gradients.
    """

    def __init__(self, config: ModelConfig, weights: Weights[Leaf], ops: TorchOps) -> None:
        self.config = config
        self._weights = weights
        self._ops = ops
        self._table: Leaf = weights.embedding if weights.head is None else weights.head
        self._values: Tensor | None = None

    @classmethod
    def load(
        cls, name: str, tokenizer: TextCodec, *, setting: str, length: int, device: str
    ) -> Self:
        """A model by its directory or its name on the Hub, which reads the same tokens.

        Parameters
        ----------
        setting : str
            Where the name is from, for messages.
        length : int
            Tokens of the longest sequence that it will read.

        Raises
        ------
        ConfigError
            If it has another tokenizer, or a shorter context.
        ModelNotFoundError
            If nothing has that name.
        """
        ops = TorchOps(device)
        model = from_pretrained(name, backend=ops)
        if model.tokenizer.fingerprint != tokenizer.fingerprint:
            raise ConfigError(
                f"{setting}={name!r}: its tokenizer is another than that of the data: choose a model that was trained "
                "with this tokenizer, or prepare the data with that model's (--tokenizer)"
            )
        if model.config.context_length < length:
            raise ConfigError(
                f"{setting}={name!r} reads {model.config.context_length} tokens at most, and sequences may have "
                f"{length}: choose another model, or shorter sequences: data.length={model.config.context_length}"
            )
        assert isinstance(model.engine, Engine)
        return cls(model.config, model.engine.weights, ops)

    @classmethod
    @torch.no_grad()
    def of(cls, model: LanguageModel) -> Self:
        """A model that is trained no further, rounded as a pass rounds it."""
        return cls(model.config, model.tree(), model.ops)

    @property
    def device(self) -> str:
        """Where it reads."""
        return self._ops.device

    @torch.no_grad()
    def hidden(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:
        """What its head reads out after every token (B, T), perhaps in packed documents, (B, T, C)."""
        return hidden_states(tokens, self._weights, self.config, self._ops, segments)

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """What its head makes of hidden states, (N, C) to (N, V)."""
        return self._ops.project(x, self._table)[0]

    @torch.no_grad()
    def losses(
        self,
        tokens: Tensor,
        targets: Tensor,
        segments: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Nats that each target costs after its token at a temperature, (B, T); 0 where there is none."""
        x = self.hidden(tokens, segments)
        # Of hidden states that are divided, the logits are.
        return self._ops.cross_entropy(x / temperature, self._table, targets)

    @torch.no_grad()
    def teaching(
        self, tokens: Tensor, temperature: float, segments: Tensor | None = None
    ) -> Teaching:
        """Its distributions after every token (B, T), for `nanochat.training.loss.terms`."""
        x, table = self.hidden(tokens, segments).flatten(0, 1), self._table
        if self._values is None:
            ids = torch.arange(self.config.vocab_size, device=tokens.device)
            self._values = rows_of(table, ids)
        if not isinstance(table, Tensor):
            x = rounded_activations(x, table.activation_block)
        return Teaching(x=x, head=self._values, temperature=temperature)
