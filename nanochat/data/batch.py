"""This file holds a batch, and how a stream of documents is laid out in the sequences of one.

Legend: B sequences, T tokens.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "Layout", "Packing"]

Packing = Literal["windows", "best-fit"]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences to train on.

    Parameters
    ----------
    inputs : int64 array, shape (B, T)
        Tokens that the model reads.
    targets : int64 array, shape (B, T)
        The token after each of them, or -1 where none is to be predicted.
    segments : int64 array, shape (B, T), optional
        Number of each token's document within its row, where documents do not see each other.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    segments: NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the sequences of a batch are made.

    Parameters
    ----------
    length : int
        Tokens of a sequence.
    packing : {"windows", "best-fit"}
        Stretches of the stream, wherever documents end; or whole documents, as many as fit.
    document_masks : bool
        Whether the documents in a window do not see each other; packed ones never do.
    mixture : tuple of pairs
        Name and weight of each source; empty is by their tokens.
    """

    length: int
    packing: Packing = "windows"
    document_masks: bool = False
    mixture: tuple[tuple[str, float], ...] = ()
