"""This file holds how the choice of tokens is launched: memory for what is drawn and for the drawing, and its cost."""

import math
from dataclasses import fields

import numpy as np

from nanochat.backends.numba.pending import Values
from nanochat.backends.numba.runtime.costs import ELEMENT
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.sampling import draw as kernels
from nanochat.draws import Drawn, Draws

__all__ = ["draw"]


def draw(launch: Launcher, logits: Values, draws: Draws) -> Drawn:
    """A token for each row of the logits (rows, columns)."""
    drawn = Drawn(
        tokens=launch.empty((draws.rows,), np.int64),
        logprobs=launch.empty((draws.rows,), np.float64),
        normalizers=launch.empty((draws.rows,), np.float64),
    )
    shape = draws.rows, draws.vocab_size
    scores, ids = launch.empty(shape), launch.empty(shape, np.int32)
    launch(
        kernels.draw,
        logits,
        *(getattr(draws, field.name) for field in fields(draws)),
        *(scores, ids, drawn.tokens, drawn.logprobs, drawn.normalizers),
        tasks=draws.rows,
        nanoseconds=math.prod(shape) * ELEMENT,
    )
    return drawn
