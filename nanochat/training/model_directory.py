"""This file holds the writing of a model in training as a model directory, which everything else reads."""

from pathlib import Path

from nanochat.bundle import Bundle
from nanochat.export.directory import save_model
from nanochat.init import freeze
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.module import LanguageModel

__all__ = ["write_model_directory"]


def write_model_directory(
    model: LanguageModel, tokenizer: Tokenizer, directory: Path, *, name: str
) -> None:
    """Write rounded weights, configuration and tokenizer of a model that has that name."""
    bundle = Bundle(
        name=name,
        config=model.config,
        weights=freeze(model.stored()),
        tokenizer=tokenizer,
        generation={"eos_token_id": [tokenizer.eos, tokenizer.end]},
    )
    save_model(directory, bundle)
