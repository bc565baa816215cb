"""This file holds an export for mlx-lm at work in mlx-lm itself, on Apple silicon or on the CPU of Linux."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx_lm.generate import generate_step
from numpy.typing import NDArray

from nanochat.proof.parity import Rounding
from nanochat.proof.tolerances import TOLERANCES

__all__ = ["MlxLm"]


class MlxLm:
    """A folder of `nanochat.export.stock.mlx.write_mlx` in mlx-lm: an `nanochat.proof.parity.Artefact`.

    Importing mlx-lm lowers this process's limit of open files to 2048.
    """

    rounding: Rounding = "none"

    def __init__(self, folder: Path) -> None:
        # The library's own types, which it does not check.
        self.model: Any
        self.tokenizer: Any
        self.model, self.tokenizer, *_ = mlx_lm.load(str(folder))
        is_rounded = "signs" in self.model.model.embed_tokens
        self.tolerance = TOLERANCES["mlx-lm, rotated" if is_rounded else "no rounding"].limit
        self.runtime = f"mlx-lm {mlx_lm.__version__}, {mx.default_device()}"

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return np.array(self.model(mx.array([list(ids)]))[0].astype(mx.float32))

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        steps = generate_step(mx.array(list(ids)), self.model, max_tokens=num_tokens)
        return [int(token) for token, _ in islice(steps, num_tokens)]
