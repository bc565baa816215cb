"""This file holds the torch module that owns the parameters of a model in training.

Its ``state_dict()`` keys are the names of the weights tree, so DDP, FSDP2, ``torch.compile`` and
``torch.distributed.checkpoint`` see what their users expect.
"""

import dataclasses
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from nanochat.backends.torch.linears import LatentLinear, Leaf
from nanochat.backends.torch.ops import TorchOps
from nanochat.config import ModelConfig
from nanochat.model import TrainingOutputs, training_outputs
from nanochat.weights import Dense, Latent, Stored, Weights, map_leaves, named_leaves

__all__ = ["LanguageModel", "Precision"]

Precision = Literal["ternary", "float"]


class LanguageModel(nn.Module):
    """A model in training: parameters in, `TrainingOutputs` out.

    Parameters
    ----------
    weights : tree of latent and dense leaves
        The start, from `nanochat.init.init`.
    ops : TorchOps
        Device and precision of the products.
    precision : {"ternary", "float"}
        "float" leaves every linear and table unquantised: the twin that a ternary model is compared with.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights[Stored],
        ops: TorchOps,
        precision: Precision = "ternary",
    ) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.precision = precision
        self._specs: dict[str, Latent | Dense] = {}
        for name, leaf in named_leaves(weights):
            assert isinstance(leaf, Latent | Dense), name
            self._specs[name] = leaf
            values = leaf.values.astype(np.float32)
            _register(self, name, nn.Parameter(torch.tensor(values, device=ops.device)))
        self._skeleton = map_leaves(lambda name, _: name, weights)
        # Once: torch.compile cannot trace the walk that makes it.
        parameters = dict(self.named_parameters())
        self._tree = map_leaves(lambda _, name: self._leaf(name, parameters[name]), self._skeleton)

    def tree(self) -> Weights[Leaf]:
        """The weights tree over the parameters, which updates change in place."""
        return self._tree

    def _leaf(self, name: str, parameter: Tensor) -> Leaf:
        spec = self._specs[name]
        if isinstance(spec, Dense):
            if spec.values.dtype == np.float32 or self.precision == "float":
                return parameter
            return LatentLinear(values=parameter, kind="float16")
        return LatentLinear(
            values=parameter,
            kind="float" if self.precision == "float" else spec.kind,
            weight_block=spec.weight_block,
            activation_block=spec.activation_block,
        )

    def stored(self) -> Weights[Stored]:
        """The weights as NumPy leaves: latent ones stay latent, float16 ones are rounded."""
        parameters = dict(self.named_parameters())

        def leaf(_: str, name: str) -> Stored:
            spec = self._specs[name]
            values = np.array(parameters[name].detach().cpu().numpy(), np.float32)
            if isinstance(spec, Latent):
                return dataclasses.replace(spec, values=values)
            # A number beyond float16 becomes infinite, which `freeze` refuses.
            with np.errstate(over="ignore"):
                return Dense(values=values.astype(spec.values.dtype.type))

        return map_leaves(leaf, self._skeleton)

    def forward(self, tokens: Tensor) -> TrainingOutputs[Tensor]:
        """Outputs for tokens (B, T)."""
        return training_outputs(tokens, self.tree(), self.config, self.ops)


def _register(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, last = name.split(".")
    module = root
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, parameter)
