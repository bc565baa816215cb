"""This file holds what the last bits of a run's numbers depend on, besides its recipe and its data."""

import logging
import platform
from collections.abc import Mapping

import torch

from nanochat.backends.host import processor

__all__ = ["machine", "warn_of_changes"]

_LOGGER = logging.getLogger(__name__)

# What decides in which order numbers are added: everywhere, and on a processor.
_EVERYWHERE = ("device", "compiled", "torch")
_ON_PROCESSORS = ("processor", "instructions", "threads")


def machine(device: torch.device, *, compiled: bool) -> dict[str, object]:
    """Where a run computes, and how."""
    return {
        "platform": platform.platform(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "compiled": compiled,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def warn_of_changes(then: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Say what was another when a run was saved that goes on, as far as that is known."""
    names = _EVERYWHERE + (_ON_PROCESSORS if now["device"] == "cpu" else ())
    other = [name for name in names if then.get(name, now[name]) != now[name]]
    if other:
        _LOGGER.warning(
            "%s: the losses will not be, bit for bit, those that the run would have had uninterrupted; go on with what "
            "it had, if they must be",
            ", ".join(f"{name} is {now[name]} and was {then[name]}" for name in other),
        )
