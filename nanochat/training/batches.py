"""This file holds batches as tensors: the parts of one that are computed at a time, and what each weighs."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanochat.data.batch import Batch
from nanochat.training.objectives.readout import counted_rows

__all__ = ["Inputs", "microbatches"]


class Inputs(NamedTuple):
    """What a pass reads: tokens, targets and segments (B, T), and from `counted_rows` what its head reads."""

    tokens: Tensor
    targets: Tensor
    segments: Tensor | None = None
    rows: Tensor | None = None


def microbatches(
    batch: Batch, size: int, device: str, farthest: int = 1
) -> Iterator[tuple[float, Inputs]]:
    """So many sequences at a time, or with 0 all of them, each with its share of the targets.

    `farthest` is that of the targets in tokens.

    Packed sequences differ in how many of their tokens are targets, and chats more so: the mean over a batch is that of
    its parts by these shares.
    """
    counts = (batch.targets >= 0).sum(axis=1)
    # A batch may be without any.
    whole = max(1, int(counts.sum()))

    def tensor(values: NDArray[np.int64] | None) -> Tensor | None:
        return None if values is None else torch.from_numpy(values).to(device)

    size = size or len(counts)
    for first in range(0, len(counts), size):
        part = slice(first, first + size)
        targets = batch.targets[part]
        yield (
            int(counts[part].sum()) / whole,
            Inputs(
                tokens=torch.from_numpy(batch.inputs[part]).to(device),
                targets=torch.from_numpy(targets).to(device),
                segments=tensor(None if batch.segments is None else batch.segments[part]),
                # Found before: a device would be waited for.
                rows=tensor(counted_rows(targets, farthest)),
            ),
        )
