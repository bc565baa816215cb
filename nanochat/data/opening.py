"""This file holds the two splits of prepared data as a run reads them: opened, and refused if it cannot."""

import logging
from collections.abc import Collection
from pathlib import Path

from nanochat.config import ModelConfig
from nanochat.data.batch import Layout
from nanochat.data.shards import Shards
from nanochat.errors import ConfigError

__all__ = ["open_splits"]

_LOGGER = logging.getLogger(__name__)


def open_splits(
    data: Path, model: ModelConfig, seed: int, layouts: Collection[Layout]
) -> tuple[Shards, Shards]:
    """What is trained on and what is held out, for sequences that are laid out in these ways.

    Raises
    ------
    ConfigError
        If the tokenizer has more tokens than the model.
    DataError
        If there are no data, or too few for one sequence.
    """
    shards, held_out = (Shards(data, split, seed=seed) for split in ("train", "held_out"))
    vocab_size = shards.tokenizer.vocab_size
    if vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer of {data} has {vocab_size} tokens but the model has vocab_size={model.vocab_size}: pass "
            f"--set model.vocab_size={vocab_size}, or prepare the data with a smaller --vocab-size"
        )
    # Now, not when the first batch or evaluation asks for one.
    for layout in layouts:
        shards.num_sequences(layout)
        held_out.num_in_order(layout)
    longest = max(layout.length for layout in layouts)
    if held_out.num_tokens <= longest:
        _LOGGER.warning(
            "the held-out text of %s has %d tokens and is evaluated as one sequence, shorter than the %d of "
            "training: prepare the data with a larger --held-out for a number that says more",
            data,
            held_out.num_tokens,
            longest,
        )
    return shards, held_out
