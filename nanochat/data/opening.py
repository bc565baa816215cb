"""This file holds the two splits of prepared data as a run reads them: opened, and refused if it cannot."""

import logging
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

from nanochat.config import ModelConfig
from nanochat.data.batch import Layout
from nanochat.data.mixture import Mixture
from nanochat.data.shards import Shards
from nanochat.errors import ConfigError, counted

__all__ = ["open_splits"]

_SPLITS: tuple[Literal["train", "held_out"], ...] = ("train", "held_out")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_LOGGER = logging.getLogger(__name__)


def open_splits(
    data: Path | Mapping[str, Path], model: ModelConfig, seed: int, layouts: Collection[Layout]
) -> tuple[Mixture, Mixture]:
    """What is trained on and what is held out, of one directory or several, for sequences of these layouts.

    Raises
    ------
    ConfigError
        If the tokenizer has more tokens than the model, or a mixture names what is not there.
    DataError
        If there are no data, or too few for one sequence.
    FormatError
        If a token is outside the vocabulary, or a file damaged otherwise.
    """
    named = data if isinstance(data, Mapping) else {"": data}
    for name in named:
        # It stands in settings and in the log.
        if isinstance(data, Mapping) and not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r:.80} is no name for data: write letters, digits, - and _ before the directory"
            )
    if not named:
        raise ConfigError("data is empty: pass a directory of tokens, or several by their names")
    shards, held_out = (
        Mixture({name: Shards(each, split, seed=seed) for name, each in named.items()}, seed=seed)
        for split in _SPLITS
    )
    vocab_size = shards.tokenizer.vocab_size
    if vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer of {shards} has {vocab_size} tokens but the model has vocab_size={model.vocab_size}: pass "
            f"--set model.vocab_size={vocab_size}, or prepare the data with a smaller --vocab-size"
        )
    # Now, not when a batch or evaluation comes to it.
    for source in (*shards.sources.values(), *held_out.sources.values()):
        source.require_known_tokens()
    for layout in layouts:
        shards.require(layout)
        held_out.num_in_order(layout)
    longest = max(layout.length for layout in layouts)
    for source in held_out.sources.values():
        if source.num_tokens <= longest:
            _LOGGER.warning(
                "the held-out text of %s has %d tokens and is evaluated as one sequence, shorter than the %d of "
                "training: prepare the data with a larger --held-out for a number that says more",
                source.directory,
                source.num_tokens,
                longest,
            )
    for name, source in shards.sources.items():
        if num_cut := max(source.num_cut(layout) for layout in layouts):
            _LOGGER.warning(
                "%s of %s are longer than a sequence of training and are cut to it: what comes behind is left out, and "
                "--set data.length would keep more of it",
                counted(num_cut, "conversation"),
                source.directory,
            )
        if not any(shards.quotas(layout)[name] for layout in layouts):
            _LOGGER.warning(
                "nothing of %s is trained on: data.mixture has no weight for %s",
                source.directory,
                name,
            )
    return shards, held_out
