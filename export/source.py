"""This file holds what every exporter is given: a whole model, and what is said of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nanochat.config import ModelConfig
from nanochat.proof.golden import Golden, record
from nanochat.text.codec import TextCodec
from nanochat.weights import Stored, Weights

__all__ = ["Source"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to export.

    Parameters
    ----------
    name : str
        What it is called where files show a name.
    config, weights, tokenizer
        As for `nanochat.lm.Model`; no leaf is latent.
    generation : mapping
        Content of its ``generation_config.json``.
    licence : str
        SPDX identifier of the weights' licence, or "unknown".
    card : bytes
        Content of its ``README.md``; may be empty.
    """

    name: str
    config: ModelConfig
    weights: Weights[Stored]
    tokenizer: TextCodec
    generation: Mapping[str, object]
    licence: str = "unknown"
    card: bytes = b""

    @cached_property
    def golden(self) -> Golden:
        """What the reference computes for it; every export carries it."""
        return record(self.config, self.weights)
