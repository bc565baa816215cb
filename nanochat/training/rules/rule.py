"""This file holds the choice among update rules: the rule of some settings, and what it keeps.

A rule is a pure function of arrays. Learning rates may be Python numbers. Leading axes of a parameter stack equal
shapes, so that one call updates many.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from nanochat.training.rules.adamw import AdamW, adamw, kept_by_adamw
from nanochat.training.rules.arrays import Array, Kept, State
from nanochat.training.rules.lion import Lion, kept_by_lion, lion
from nanochat.training.rules.low_rank import Projected, in_subspace, kept_in_subspace
from nanochat.training.rules.muon import Muon, kept_by_muon, muon
from nanochat.training.rules.rated import shrunk

__all__ = ["SETTINGS", "Rule", "kept", "updated"]

Rule = Annotated[Muon | AdamW | Lion, Field(discriminator="rule")]

_Update = Callable[..., tuple[Array, State]]
_Keeping = Callable[[Any, Sequence[int]], dict[str, Kept]]

_RULES: Mapping[type[Rule], tuple[_Update, _Keeping]] = {
    Muon: (muon, kept_by_muon),
    AdamW: (adamw, kept_by_adamw),
    Lion: (lion, kept_by_lion),
}
# By name.
SETTINGS: Mapping[str, type[Rule]] = {kind().rule: kind for kind in _RULES}


def updated(
    parameter: Array, gradient: Array, state: State, settings: Rule, *, rate: float, step: int
) -> tuple[Array, State]:
    """A parameter and its state after a step.

    Parameters
    ----------
    state : dict of str to array
        What the step before left; empty at the first.
    rate : float
        Learning rate of this step, which stands for that of the settings.
    step : int
        Number of this step since the state was empty, from 1.
    """
    update, _ = _of(settings)
    shape = parameter.shape
    change, after = update(gradient, state, settings, shape=shape, rate=rate, step=step)
    return shrunk(parameter, change, settings, rate) + change, after


def kept(settings: Rule, shape: Sequence[int]) -> dict[str, Kept]:
    """What a rule keeps of a parameter of that shape, after its first step.

    Examples
    --------
    >>> kept(AdamW(), (4, 8))["second"]
    Kept(shape=(4, 8), dtype='float32')
    """
    return _of(settings)[1](settings, shape)


def _of(settings: Rule) -> tuple[_Update, _Keeping]:
    """The update of a rule, and what it keeps, perhaps in a subspace."""
    update, keeping = _RULES[type(settings)]
    if isinstance(settings, Projected) and settings.rank:
        return partial(in_subspace, update), partial(kept_in_subspace, keeping)
    return update, keeping
