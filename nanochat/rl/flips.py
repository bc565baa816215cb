"""This file holds which codes an update has changed: the forward pass sees nothing else of a ternary model."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nanochat.backends.torch.linears import rounded_values
from nanochat.training.module import LanguageModel
from nanochat.weights import Spec

__all__ = ["codes", "flips"]

_LARGEST = 127


@torch.no_grad()
def codes(model: LanguageModel, specs: Mapping[str, Spec]) -> dict[str, Tensor]:
    """The codes of all ternary and 8-bit parameters, as they are rounded."""
    found = {}
    for name, parameter in model.named_parameters():
        spec = specs[name]
        if spec.kind == "ternary":
            rounded = rounded_values(parameter, "ternary", spec.weight_block)
            found[name] = rounded.sign().to(torch.int8)
        elif spec.kind == "int8":
            blocks = rounded_values(parameter, "int8", spec.weight_block)
            blocks = blocks.unflatten(1, (-1, spec.weight_block))
            # The largest of a block has the largest code.
            largest = blocks.abs().amax(dim=2, keepdim=True).clamp(min=1e-30)
            found[name] = (blocks * (_LARGEST / largest)).round_().flatten(1).to(torch.int8)
    return found


def flips(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], specs: Mapping[str, Spec]
) -> dict[str, float]:
    """The share of codes that are others, of ``ternary`` and ``int8`` parameters, if there are any."""
    found = {}
    for kind in ("ternary", "int8"):
        names = [name for name in before if specs[name].kind == kind]
        if names:
            changed = sum(int((before[name] != after[name]).sum()) for name in names)
            found[kind] = changed / sum(before[name].numel() for name in names)
    return found
