"""This file holds random logits and settings of rows, from peaked to flat, with ties and all filters."""

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from nanochat.draws import Draws

__all__ = ["random_draws", "random_logits", "rows_of"]


def random_logits(rows: int, vocab_size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Rows of logits of six kinds in turn."""
    normal = rng.standard_normal((rows, vocab_size))
    for row, values in enumerate(normal):
        kind = row % 6
        if kind == 0:
            values *= 3.0
        elif kind == 1:
            # Peaked, as a language model's.
            values *= 2.0
            values[rng.integers(0, vocab_size, 3)] += 12.0
        elif kind == 2:
            # Almost flat.
            values *= 1e-3
        elif kind == 3:
            # Many ties, zeros of both signs among them.
            values[:] = np.rint(values) * rng.choice([-1.0, 1.0], vocab_size)
        elif kind == 4:
            # All alike.
            values[:] = values[0]
        else:
            # Ascending: each is likelier than all before it.
            values.sort()
            values *= 3.0
    return normal.astype(np.float32)


def random_draws(rows: int, vocab_size: int, rng: np.random.Generator) -> Draws:
    """Rows of different settings."""
    draws = Draws.greedy(rows, vocab_size=vocab_size)
    draws.temperature[:] = rng.choice([0.0, 1e-300, 0.01, 0.7, 0.7, 1.0, 3.0, 1e6], rows)
    draws.top_k[:] = rng.choice([0, 0, 0, 1, 2, 40, 1000, 2**31 - 1], rows)
    draws.top_p[:] = rng.choice([1.0, 1.0, 0.95, 0.95, 0.5, 0.01, 1e-300, 0.9999], rows)
    draws.min_p[:] = rng.choice([0.0, 0.0, 0.05, 0.5, 1.0], rows)
    draws.seed[:] = rng.integers(0, 2**63 - 1, rows)
    draws.position[:] = rng.integers(0, 2**20, rows)
    draws.with_logprob[:] = rng.random(rows) < 0.3
    most = rng.choice([1, min(9, vocab_size), vocab_size + 1], rows)
    draws.num_adjusted[:] = rng.integers(0, most)
    draws.masked[:] = rng.random(rows) < 0.4
    for row, share in enumerate(rng.choice([0.0, 0.02, 0.5, 1.0], rows)):
        bits = rng.random(32 * draws.allowed.shape[1]) < share
        bits[rng.integers(vocab_size)] = True
        draws.allowed[row] = np.packbits(bits, bitorder="little").view(np.uint32)
    for row, count in enumerate(draws.num_adjusted):
        draws.adjusted[row, :count] = rng.permutation(vocab_size)[:count]
        draws.factors[row, :count] = rng.choice([1.0, 1.1, 0.1, 10.0], count)
        draws.addends[row, :count] = rng.choice([0.0, -0.3, 1.5, 100.0, -100.0], count)
    return draws


def rows_of(draws: Draws, rows: slice) -> Draws:
    """Some rows, not copied."""
    arrays = {
        field.name: getattr(draws, field.name)[rows]
        for field in fields(draws)
        if field.name != "vocab_size"
    }
    return Draws(vocab_size=draws.vocab_size, **arrays)
