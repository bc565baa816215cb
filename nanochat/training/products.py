"""This file holds the type that training multiplies in: what a run asks for, or what a short measurement finds faster.

Processors without instructions for it multiply bfloat16 many times slower than float32.
"""

import logging
import time
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch.nn import functional

from nanochat.training.phases import stages
from nanochat.training.recipe import Recipe, recipe_from_dict, recipe_to_dict

__all__ = ["Speeds", "measured", "with_products"]

_LOGGER = logging.getLogger(__name__)

_FIRST_TOKENS, _MOST_TOKENS = 8, 1024
_SECONDS, _LONGEST = 0.1, 0.3
# What is rounded more should pay.
_ENOUGH = 1.2


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """GFLOP a second of products forward and backward, with conversions that they need; of each of so many threads."""

    float32: float
    bfloat16: float
    threads: int = 1

    @property
    def ratio(self) -> float:
        """How many times as fast bfloat16 is."""
        return self.bfloat16 / self.float32

    def peak(self, products: str) -> float:
        """FLOP a second of all threads, in one of the two types."""
        return 1e9 * self.threads * (self.float32 if products == "float32" else self.bfloat16)

    def __str__(self) -> str:
        return f"{self.float32:.0f} GFLOP/s in float32, {self.bfloat16:.0f} in bfloat16"


def measured(width: int, device: torch.device) -> Speeds:
    """The speeds of the products of a layer of that width there, in a fifth of a second, or two if it is slow."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        # Several would wait for one that has no core at the moment, which would be measured instead.
        torch.set_num_threads(1)
    try:
        return Speeds(
            float32=_speed(width, device, torch.float32),
            bfloat16=_speed(width, device, torch.bfloat16),
            threads=threads if device.type == "cpu" else 1,
        )
    finally:
        torch.set_num_threads(threads)


def with_products(recipe: Recipe, speeds: Speeds) -> Recipe:
    """The recipe with "auto" decided in all its phases; what it asks for and is slow is warned of."""
    chosen: Literal["float32", "bfloat16"] = "bfloat16" if speeds.ratio >= _ENOUGH else "float32"
    asked = {stage.recipe.precision.products for stage in stages(recipe)}
    if "bfloat16" in asked and speeds.ratio < 1:
        _LOGGER.warning(
            "products in bfloat16 take %.1f times as long here as in float32 (%s): pass --set precision.products=auto",
            1 / speeds.ratio,
            speeds,
        )
    fields = recipe_to_dict(recipe)
    groups = [fields, *cast("list[dict[str, object]]", fields["phases"])]
    for group in groups:
        precision = cast("dict[str, object]", group.get("precision", {}))
        if precision.get("products") == "auto":
            precision["products"] = chosen
    return recipe_from_dict(fields)


def _speed(width: int, device: torch.device, dtype: torch.dtype) -> float:
    x = torch.randn(_MOST_TOKENS, width, device=device, requires_grad=True)
    weight = torch.randn(width, width, device=device, requires_grad=True)
    tokens, best, begin = _FIRST_TOKENS, 0.0, time.perf_counter()
    while True:
        start = time.perf_counter()
        functional.linear(x[:tokens].to(dtype), weight.to(dtype)).to(x.dtype).sum().backward()
        assert weight.grad is not None
        # Waits for the device.
        float(weight.grad[0, 0])
        end = time.perf_counter()
        best = max(best, 3 * 2 * tokens * width**2 / (end - start) / 1e9)
        # What is a hundred times slower than it should be is not given many tokens.
        if end - start > _LONGEST or (tokens == _MOST_TOKENS and end - begin > _SECONDS):
            return best
        tokens = min(4 * tokens, _MOST_TOKENS)
