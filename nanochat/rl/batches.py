"""This file holds rollouts as arrays: which samples are learnt from, what each of their tokens weighs, and fillings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanochat.evaluation.completing import seed_of
from nanochat.rl.advantages import advantages
from nanochat.rl.recipe import Policy, Recipe
from nanochat.rl.rollouts import Rollouts

__all__ = ["Learnt", "Microbatch", "learnt", "microbatches"]

# Lengths are multiples of it where a compiler would compile for each of them.
_MULTIPLE = 32


class Learnt(NamedTuple):
    """A sample that is learnt from.

    Parameters
    ----------
    prompt, tokens : tuple of int
        What was read, and what was drawn after it.
    logprobs : tuple of float
        Of the tokens, where they were drawn.
    advantage : float
        What the sample is worth.
    weight : float
        Factor of each of its tokens: all those of a step have a sum near 1.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantage: float
    weight: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Microbatch:
    """Samples side by side, filled up on the right.

    Parameters
    ----------
    tokens, targets : int64 arrays, shape (B, T)
        Targets are below 0 where none was drawn.
    advantages, weights, drawn : float32 arrays, shape (B, T)
        Of the targets: what they are worth, their factors, and their log-probabilities where they were drawn.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    advantages: NDArray[np.float32]
    weights: NDArray[np.float32]
    drawn: NDArray[np.float32]


def learnt(rollouts: Rollouts, recipe: Recipe, step: int) -> list[Learnt]:
    """The samples of a step that are learnt from, which are all whose gradient is not 0.

    Of those worth more than the mean, and of the others, some are chosen by the seed and the step if they are too many,
    and weigh as much as all of them.
    """
    policy, teaches = recipe.policy, recipe.reward.kind == "teacher"
    values = advantages(rollouts.rewards, policy.advantage) if rollouts.groups else np.zeros((0, 0))
    generator = np.random.default_rng(seed_of(recipe.seed, "choosing", step))
    # What everything is divided by does not depend on which are chosen.
    lengths = np.array(
        [[len(each.tokens) for each in group.completions] for group in rollouts.groups]
    )
    found: list[Learnt] = []
    for group, worth in zip(rollouts.groups, values, strict=True):
        shares = _shares(worth, policy, generator)
        for completion, reward, value, share in zip(
            group.completions, group.rewards, worth, shares, strict=True
        ):
            cut = completion.finish == "length" and recipe.reward.truncated == "mask"
            without = not (value or policy.kl or policy.entropy or teaches)
            if cut or not share or without or np.isnan(reward) or not completion.tokens:
                continue
            weight = share / _divisor(policy, len(completion.tokens), lengths, recipe)
            found.append(
                Learnt(group.prompt, completion.tokens, completion.logprobs, float(value), weight)
            )
    return found


def microbatches(
    samples: Sequence[Learnt], size: int, *, full: bool = False
) -> Iterator[Microbatch]:
    """Samples side by side, those of alike lengths together, of at most so many tokens; one may be longer.

    With `full`, lengths are rounded up, and all of a length are of one shape, filled up with rows that have no target.
    """
    ordered = sorted(samples, key=lambda each: len(each.prompt) + len(each.tokens), reverse=True)
    first = 0
    while first < len(ordered):
        length = len(ordered[first].prompt) + len(ordered[first].tokens) - 1
        if full:
            length = -(-length // _MULTIPLE) * _MULTIPLE
        count = max(1, size // length)
        chosen = ordered[first : first + count]
        yield _side_by_side(chosen, (count if full else len(chosen), length))
        first += count


def _shares(
    worth: NDArray[np.float64], policy: Policy, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The factor of each sample of a problem: 1, or of those that are too many 0, or what makes up for these."""
    shares = np.ones_like(worth)
    for most, alike in ((policy.negatives, worth <= 0), (policy.positives, worth > 0)):
        places = np.flatnonzero(alike)
        if most and len(places) > most:
            shares[places] = 0
            shares[generator.choice(places, most, replace=False)] = len(places) / most
    return shares


def _divisor(policy: Policy, length: int, lengths: NDArray[np.int64], recipe: Recipe) -> float:
    match policy.normalised_by:
        case "sequence":
            return float(length * lengths.size)
        case "token":
            return float(lengths.sum())
        case "constant":
            return float(recipe.rollout.max_tokens * lengths.size)


def _side_by_side(samples: Sequence[Learnt], shape: tuple[int, int]) -> Microbatch:
    tokens, targets = np.zeros(shape, np.int64), np.full(shape, -1, np.int64)
    worth, weights, drawn = (np.zeros(shape, np.float32) for _ in range(3))
    for row, each in enumerate(samples):
        ids = [*each.prompt, *each.tokens]
        tokens[row, : len(ids) - 1] = ids[:-1]
        place = slice(len(each.prompt) - 1, len(ids) - 1)
        targets[row, place] = each.tokens
        worth[row, place] = each.advantage
        weights[row, place] = each.weight
        drawn[row, place] = each.logprobs
    return Microbatch(
        tokens=tokens, targets=targets, advantages=worth, weights=weights, drawn=drawn
    )
