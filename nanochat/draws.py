"""This file holds the draw of tokens from logits: what it depends on, its random numbers, and its definition in NumPy.

A draw sees float32 logits and its own settings, so it works alike for every backend. Backends also *pick* alike:

* Scores are float32, by operations that round once each; what is most probable is a comparison of float32 numbers, and
  of equal ones the lower token id comes first.
* Weights, their sums and the race are float64, so that no order of adding and no library's `exp` can be seen.
* Each token has a random number of its own, which depends on the row's seed, the position and the token's id only: not
  on the other tokens, on the filters or on the batch. It is computed, not drawn from a stream, so a position can be
  skipped or drawn again at no cost.

Legend: M rows, V tokens that may be drawn, W columns of the logits, at least V.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import InputError, NumericError, ShapeError

__all__ = ["Drawn", "Draws", "log_sum_exp", "require_finite", "require_rows", "sample"]
__all__ += ["SEED_OF_ZERO", "top_logprobs", "uniform"]

_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """How each of M rows draws its next token; the arrays may be overwritten in place from step to step.

    The steps apply in the order of the fields.

    Parameters
    ----------
    vocab_size : int
        V. A model may have more rows in its table than its tokenizer has tokens.
    num_adjusted : int64 array, shape (M,)
        The tokens of each row whose logits are adjusted.
    adjusted : int32 array, shape (M, V)
        The ids of these tokens, different ones below V, in any order.
    factors, addends : float32 arrays, shape (M, V)
        A logit l of these tokens becomes ``(l / factor if l > 0 else l * factor) + addend``.
    masked : bool array, shape (M,)
        Whether a row draws only tokens that are allowed.
    allowed : uint32 array, shape (M, V / 32 rounded up)
        Bit ``i % 32`` of word ``i // 32`` is set if token i is. At least one is, in a row that is masked.
    temperature : float64 array, shape (M,)
        Scores are divided by this; 0.0 takes the largest and skips all that follows.
    top_k : int64 array, shape (M,)
        Keep this many of the most probable tokens; 0 is off.
    top_p : float64 array, shape (M,)
        Of those, keep the fewest most probable ones whose probabilities sum to at least this; 1.0 is off.
    min_p : float64 array, shape (M,)
        Of those, keep the ones at least this fraction as probable as the most probable one; 0.0 is off.
    seed, position : int64 arrays, shape (M,)
        What a row's random numbers depend on, both from 0.
    with_logprob : bool array, shape (M,)
        Whether the row asks for the log-probability of its token, which costs an exponential for every token.
    """

    vocab_size: int
    num_adjusted: NDArray[np.int64]
    adjusted: NDArray[np.int32]
    factors: NDArray[np.float32]
    addends: NDArray[np.float32]
    masked: NDArray[np.bool_]
    allowed: NDArray[np.uint32]
    temperature: NDArray[np.float64]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float64]
    min_p: NDArray[np.float64]
    seed: NDArray[np.int64]
    position: NDArray[np.int64]
    with_logprob: NDArray[np.bool_]

    @classmethod
    def greedy(cls, rows: int, *, vocab_size: int) -> "Draws":
        """Rows that take the largest logit, to be overwritten.

        Memory for adjustments is taken from the system as it is used: zeros are not written before.
        """
        return cls(
            vocab_size=vocab_size,
            num_adjusted=np.zeros(rows, np.int64),
            adjusted=np.zeros((rows, vocab_size), np.int32),
            factors=np.zeros((rows, vocab_size), np.float32),
            addends=np.zeros((rows, vocab_size), np.float32),
            masked=np.zeros(rows, np.bool_),
            allowed=np.zeros((rows, -(-vocab_size // 32)), np.uint32),
            temperature=np.zeros(rows, np.float64),
            top_k=np.zeros(rows, np.int64),
            top_p=np.ones(rows, np.float64),
            min_p=np.zeros(rows, np.float64),
            seed=np.zeros(rows, np.int64),
            position=np.zeros(rows, np.int64),
            with_logprob=np.zeros(rows, np.bool_),
        )

    @property
    def rows(self) -> int:
        """M."""
        return len(self.temperature)


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """What M rows have drawn; of rows that did not ask, log-probability and normalizer are NaN.

    Parameters
    ----------
    tokens : int64 array, shape (M,)
        -1 for a row with a logit that is not finite: nothing can be drawn from it, see `require_finite`.
    logprobs : float64 array, shape (M,)
        Logarithm of the token's probability in the softmax of the row's logits as the model gave them.
    normalizers : float64 array, shape (M,)
        ``log(sum(exp(logits)))`` of the row: a token's log-probability is its logit minus this.
    """

    tokens: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    normalizers: NDArray[np.float64]


def sample(logits: NDArray[np.float32], draws: Draws) -> Drawn:
    """Draw one token for each row.

    Parameters
    ----------
    logits : float32 array, shape (..., W), M rows in all
        They are read, not changed.

    Raises
    ------
    ShapeError
        If there are not M rows of at least V logits.

    Examples
    --------
    >>> draws = Draws.greedy(1, vocab_size=3)
    >>> sample(np.array([[0.5, 3.0, 1.0]], np.float32), draws).tokens.tolist()
    [1]
    """
    require_rows(logits.shape, draws)
    rows = logits.reshape(-1, logits.shape[-1])[:, : draws.vocab_size]
    tokens = np.full(draws.rows, -1, np.int64)
    logprobs, normalizers = np.full((2, draws.rows), np.nan)
    for r, row in enumerate(rows):
        if not np.isfinite(row).all():
            continue
        tokens[r] = _choose(_scores(row, draws, r), draws, r)
        if draws.with_logprob[r]:
            normalizers[r] = log_sum_exp(row)
            logprobs[r] = float(row[tokens[r]]) - normalizers[r]
    return Drawn(tokens=tokens, logprobs=logprobs, normalizers=normalizers)


def log_sum_exp(logits: NDArray[np.float32]) -> float:
    """``log(sum(exp(logits)))`` of one row, (V,), in float64."""
    exact = logits.astype(np.float64)
    largest = exact.max()
    return float(largest + np.log(np.exp(exact - largest).sum()))


def top_logprobs(
    logits: NDArray[np.float32], count: int, *, normalizer: float | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids and log-probabilities of the most probable tokens of one row, most probable first.

    Parameters
    ----------
    logits : float32 array, shape (V,)
    count : int
        How many; all if there are fewer. Of equal tokens those with lower ids come first.
    normalizer : float, optional
        `Drawn.normalizers` of the row: with it the drawn token has, bit for bit, the log-probability that was reported
        for it. By default it is computed.

    Examples
    --------
    >>> ids, logprobs = top_logprobs(np.log(np.array([0.25, 0.5, 0.25], np.float32)), 2)
    >>> ids.tolist(), np.exp(logprobs).round(6).tolist()
    ([1, 0], [0.5, 0.25])
    """
    if count < 0:
        raise InputError(f"{count} alternatives were asked for: pass 0 or more")
    ids = np.arange(logits.size)
    if count < logits.size:
        ids = _most_probable(logits, count)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    whole = log_sum_exp(logits) if normalizer is None else normalizer
    return ids, logits[ids].astype(np.float64) - whole


def require_rows(shape: tuple[int, ...], draws: Draws) -> None:
    """Refuse logits of another shape than draws are for."""
    count = int(np.prod(shape[:-1]))
    if count != draws.rows or shape[-1] < draws.vocab_size or not draws.vocab_size:
        raise ShapeError(
            f"logits have shape {tuple(shape)}, but these draws are for {draws.rows} rows of {draws.vocab_size} tokens "
            "or more: pass one row of logits for each row of the draws"
        )


def require_finite(logits: NDArray[np.float32]) -> None:
    """Refuse a row of logits, (V,), of which one is infinite or not a number."""
    finite = np.isfinite(logits)
    if not finite.all():
        token = int(np.argmin(finite))
        raise NumericError(
            f"the logit of token {token} is {logits[token]}, but logits must be finite: look for an overflow in the "
            "weights or in the backend that computed them"
        )


# What seed 0 stands for: no seed is as large.
SEED_OF_ZERO = 0xD1B54A32D192ED03


def uniform(seed: int, position: int, ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each token's number between 0 and 1, which depends on these three alone.

    SplitMix64 [1]_ makes two 32-bit keys of seed and position; then each token takes two rounds of a 32-bit hash [2]_,
    with one key before each. That is 32 bits that a kernel computes in vector registers, and mostly all that it needs;
    another round gives the 20 bits below. Over 16 million numbers, chi-square of bytes and of pairs of bytes (tokens
    1, 2, 64 and 1024 apart, neighbouring positions, neighbouring seeds) is within 2.6 standard deviations of what
    independent numbers give; after one round, it is 250 off for tokens 1024 apart.

    References
    ----------
    .. [1] G. Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, section 4.
    .. [2] C. Wellons, "Prospecting for Hash Functions", 2018, with the constants of issue 19 of
       github.com/skeeto/hash-prospector: bias 0.107.

    Examples
    --------
    >>> uniform(5, 0, np.array([7, 8])).round(6).tolist()
    [0.399831, 0.317851]
    """
    first, second = _keys(seed, position)
    high = _hash(_hash(ids.astype(np.uint32) + first) ^ second)
    low = _hash(high + first) >> np.uint32(12)
    # 52 bits, and half of one: neither 0 nor 1, and exact in float64.
    return (high * 2.0**20 + low + 0.5) / 2.0**52


def _keys(seed: int, position: int) -> tuple[np.uint32, np.uint32]:
    # Mixing leaves zero as it is, with which token 0 would win every first draw of seed 0.
    key = _mix(_mix(int(seed) or SEED_OF_ZERO) + int(position) * 0x9E3779B97F4A7C15)
    return np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)


def _mix(x: int) -> int:
    x &= 2**64 - 1
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 2**64 - 1
    x = (x ^ x >> 27) * 0x94D049BB133111EB & 2**64 - 1
    return x ^ x >> 31


def _hash(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    x = (x ^ x >> np.uint32(16)) * np.uint32(0x21F0AAAD)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0xD35A2D97)
    return x ^ x >> np.uint32(15)


def _scores(row: NDArray[np.float32], draws: Draws, r: int) -> NDArray[np.float32]:
    """Logits after the row's adjustments, kept finite; those of tokens that are not allowed are the least."""
    scores = row.copy()
    adjusted = np.s_[r, : draws.num_adjusted[r]]
    ids, factors = draws.adjusted[adjusted], draws.factors[adjusted]
    found = scores[ids]
    with np.errstate(over="ignore"):
        found = np.where(found > 0, found / factors, found * factors) + draws.addends[adjusted]
    scores[ids] = np.clip(found, -_LARGEST, _LARGEST)
    if draws.masked[r]:
        bits = np.unpackbits(draws.allowed[r].view(np.uint8), bitorder="little")
        # Beside any other, such a score has probability 0.
        scores[bits[: scores.size] == 0] = -_LARGEST
    return scores


def _choose(scores: NDArray[np.float32], draws: Draws, r: int) -> int:
    if draws.temperature[r] == 0.0:
        return int(np.argmax(scores))
    ids, exponents = _support(scores, draws, r)
    return int(ids[_race(exponents, uniform(draws.seed[r], draws.position[r], ids))])


def _support(
    scores: NDArray[np.float32], draws: Draws, r: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids that survive the filters, ascending, and the logarithms of their unnormalized probabilities."""
    ids = np.arange(scores.size)
    if 0 < draws.top_k[r] < scores.size:
        ids = _most_probable(scores, int(draws.top_k[r]))

    exact = scores[ids].astype(np.float64)
    # A tiny temperature sends all but the largest to minus infinity, hence to probability 0.
    with np.errstate(over="ignore"):
        exponents = (exact - exact.max()) / draws.temperature[r]
    weights = np.exp(exponents)

    # The largest weight is exp(0) = 1, so every filter keeps it.
    kept = np.flatnonzero(weights >= draws.min_p[r])
    if draws.top_p[r] < 1.0:
        nucleus = _nucleus(exact, weights, draws.top_p[r])
        kept = nucleus[weights[nucleus] >= draws.min_p[r]]
    return ids[kept], exponents[kept]


def _most_probable(scores: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Return the indices of the `count` largest scores, ascending; of equal ones, the first."""
    if not count:
        return np.arange(0)
    least = np.partition(scores, scores.size - count)[scores.size - count]
    above = np.flatnonzero(scores > least)
    equal = np.flatnonzero(scores == least)[: count - above.size]
    return np.sort(np.concatenate([above, equal]))


def _nucleus(
    scores: NDArray[np.float64], weights: NDArray[np.float64], top_p: float
) -> NDArray[np.int64]:
    """Return the indices of the fewest most probable tokens that hold `top_p` of the sum of weights, ascending."""
    total = weights.sum()
    # Sorting V scores is the slowest step. The weights below this bound sum to less than 1 - top_p of
    # the total, hence the nucleus lies among the others: often a hundred of 50,000.
    candidates = np.flatnonzero(weights >= (1.0 - top_p) * total / weights.size)
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1
    return np.sort(order[:count])


def _race(exponents: NDArray[np.float64], uniform: NDArray[np.float64]) -> int:
    """Return index i with probability ``exp(exponents[i]) / sum(exp(exponents))``.

    Token i arrives after an exponential time of rate ``exp(exponents[i])``, and the first one wins: the Gumbel-max
    trick [1]_. If the logits of 4,096 tokens differ by 1e-5 between two backends, the picks differ in fewer than 1 step
    of 50,000. With a single uniform number and the running sum of the weights it is 1 of 2,000, because the differences
    add up along the sum.

    References
    ----------
    .. [1] C. J. Maddison et al., "A* Sampling", 2014, section 2. arXiv:1411.0030
    """
    return int(np.argmin(np.log(-np.log1p(-uniform)) - exponents))
