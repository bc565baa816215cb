"""This file holds the list of what a model keeps of a sequence between calls: keys and values, or states."""

from nanochat.config import ModelConfig
from nanochat.ops import Slot, Storage
from nanochat.shapes import delta_key_heads, layer_kinds, run_order

__all__ = ["slots"]


def slots(
    config: ModelConfig, *, storage: Storage = "float32", ahead: bool = False
) -> tuple[Slot, ...]:
    """What a state must hold, in the order in which a pass reaches it; a looped layer has its own at every step.

    Keys and values are kept as `storage` says. With `ahead`, those of the extra heads come last, see
    `nanochat.model.forward_ahead`.
    """
    kinds = layer_kinds(config)
    heads, taps = config.delta_heads, config.delta_conv_width
    keys, values = delta_key_heads(config) * config.delta_key_dim, heads * config.delta_value_dim
    of_kind = {
        "attention": (
            Slot(
                kind="attention",
                heads=config.num_kv_heads,
                key_dim=config.head_dim,
                storage=storage,
            ),
        ),
        "delta": (
            Slot(kind="conv", taps=taps, features=keys),
            Slot(kind="conv", taps=taps, features=keys),
            Slot(kind="conv", taps=taps, features=values),
            Slot(
                kind="delta",
                heads=heads,
                key_dim=config.delta_key_dim,
                value_dim=config.delta_value_dim,
            ),
        ),
    }
    found = [slot for number in run_order(config) for slot in of_kind[kinds[number]]]
    return (*found, *(of_kind["attention"] * config.num_ahead if ahead else ()))
