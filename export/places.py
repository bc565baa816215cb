"""This file holds where a leaf lies among the tensors of another program's file: in which, and in which of its rows."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
from nanochat.shapes import delta_key_heads
from nanochat.weights import Spec

__all__ = ["Index", "Place", "gated_rows", "require_sizes", "row_slice", "tensor_shapes"]

Index = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """Where a leaf lies: in a tensor, of which it has some rows, all if `rows` is None.

    `expert` is the number of the matrix in a stack of them. If there are `heads`, the columns come head by head in that
    order, all of the same width.
    """

    tensor: str
    rows: Index | None = None
    heads: Index | None = None
    expert: int | None = None


# What a damaged file says of heads may make it large, and of layers many.
@functools.lru_cache(maxsize=4)
def gated_rows(config: ModelConfig, *, gate: bool) -> Index:
    """Rows of a tensor that has, for each head, D rows of query and D rows of gate."""
    features = np.arange(config.head_dim) + (config.head_dim if gate else 0)
    heads = 2 * config.head_dim * np.arange(config.num_heads)
    return (heads[:, None] + features).reshape(-1)


def require_sizes(config: ModelConfig, found: Collection[tuple[int, ...]]) -> None:
    """Refuse more layers, rows or experts than tensors of these shapes have, before places of as many are made.

    Raises
    ------
    ConfigError
        If there are more.
    """
    longest = max((size for shape in found for size in shape), default=0)
    stacked = max((shape[0] for shape in found if len(shape) > 2), default=1)
    sizes = {
        "num_layers": (config.num_layers, len(found)),
        "num_heads * head_dim": (config.num_heads * config.head_dim, longest),
        "num_experts": (config.num_experts, stacked),
    }
    if "delta" in config.layer_pattern:
        keys = delta_key_heads(config) * config.delta_key_dim
        values = config.delta_heads * config.delta_value_dim
        sizes |= {
            "delta_key_heads * delta_key_dim": (keys, longest),
            "delta_heads * delta_value_dim": (values, longest),
        }
    for name, (size, most) in sizes.items():
        if size > most:
            raise ConfigError(
                f"{name} is {size}, and the tensors have {most} at most: the metadata are another model's; fetch the "
                "model again"
            )


def row_slice(rows: Index | None) -> Index | slice:
    """What takes these rows, or all, of an array: a slice, which copies nothing, where they follow each other.

    >>> row_slice(np.arange(3, 7)), row_slice(np.array([0, 2]))
    (slice(3, 7, None), array([0, 2]))
    """
    if rows is None:
        return slice(None)
    if len(rows) and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def tensor_shapes(
    places: Mapping[str, Place], specs: Mapping[str, Spec]
) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that holds leaves: their rows one after the other, or stacked if of experts."""
    rows: dict[str, int] = {}
    stacks: dict[str, int] = {}
    rest: dict[str, tuple[int, ...]] = {}
    for name, place in places.items():
        count, *columns = specs[name].shape
        rest[place.tensor] = tuple(columns)
        if place.expert is None:
            rows[place.tensor] = rows.get(place.tensor, 0) + count
        else:
            rows[place.tensor] = count
            stacks[place.tensor] = stacks.get(place.tensor, 0) + 1
    return {
        tensor: (*([stacks[tensor]] if tensor in stacks else ()), count, *rest[tensor])
        for tensor, count in rows.items()
    }
