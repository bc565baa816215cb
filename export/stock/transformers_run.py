"""This file holds an export for transformers at work in transformers itself, on the CPU in float32."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from nanochat.proof.parity import Rounding
from nanochat.proof.tolerances import TOLERANCES

__all__ = ["Transformers"]


class Transformers:
    """A folder of `nanochat.export.stock.transformers.write_transformers`: an `nanochat.proof.parity.Artefact`."""

    tolerance = TOLERANCES["no rounding"].limit
    rounding: Rounding = "none"

    def __init__(self, folder: Path) -> None:
        # The library's own types, which it does not check.
        self.model: Any
        self.tokenizer: Any
        with _quiet():
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True
            )
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.runtime = f"transformers {transformers.__version__}, cpu"

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits: NDArray[np.float32] = self.model(torch.tensor([list(ids)])).logits[0].numpy()
        return logits

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        prompt = torch.tensor([list(ids)])
        config = copy.deepcopy(self.model.generation_config)
        config.max_new_tokens = num_tokens
        # Special tokens do not end the text here.
        config.eos_token_id = None
        tokens = self.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config
        )
        return [int(token) for token in tokens[0, len(ids) :]]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars on a standard error that is the caller's."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # the library's
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # the library's
