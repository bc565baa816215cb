"""This file holds the torch module that owns the parameters of a model in training.

Its ``state_dict()`` keys are the names of the weights tree, so DDP, FSDP2, ``torch.compile`` and
``torch.distributed.checkpoint`` see what their users expect.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nanochat.backends.torch.linears import (
    FloatLinear,
    Leaf,
    RoundedKind,
    rounded_values,
    rounded_weights,
)
from nanochat.backends.torch.ops import TorchOps
from nanochat.config import ModelConfig
from nanochat.model import LayerRunner, run_layer, training_outputs
from nanochat.shapes import shapes
from nanochat.weights import Dense, Latent, Spec, Stored, Weights, leaf_of, map_leaves, named_leaves

__all__ = ["LanguageModel", "is_latent"]

Result = TypeVar("Result")


class LanguageModel(nn.Module):
    """A model in training: tokens and a loss in, what the loss gives out.

    The parameters are latent. A pass rounds each of them once, with straight-through gradients; inside `rounded`, all
    passes share one rounding.

    Parameters
    ----------
    weights : tree of latent and dense leaves
        The start, from `nanochat.init.init`.
    ops : TorchOps
        Device and precision of the products.
    precision : {"ternary", "float"}
        "float" leaves every linear and table unquantised: the twin that a ternary model is compared with.

    Attributes
    ----------
    layer : LayerRunner
        Runs each layer: `nanochat.model.run_layer`, or the same compiled.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights[Stored],
        ops: TorchOps,
        precision: Literal["ternary", "float"] = "ternary",
    ) -> None:
        super().__init__()
        self.config = config
        self.ops = ops
        self.precision = precision
        self._specs = shapes(config)
        self._are_rounded = False
        self.layer: LayerRunner = run_layer
        for name, leaf in named_leaves(weights):
            assert isinstance(leaf, Latent | Dense), name
            values = torch.tensor(leaf.values.astype(np.float32), device=ops.device)
            _register(self, name, nn.Parameter(values))

    @contextmanager
    def rounded(self) -> Iterator[None]:
        """Round all parameters once for every pass inside the block; after it they are latent again.

        What `backward` leaves in ``parameter.grad`` inside is the straight-through gradient. Parameters must be changed
        outside only: what they hold inside is overwritten at the end.
        """
        assert not self._are_rounded
        specs = dict(named_leaves(self._specs))
        latent = [
            (parameter, parameter.detach().clone(), specs[name])
            for name, parameter in self.named_parameters()
            if is_latent(specs[name], self.precision)
        ]
        try:
            with torch.no_grad():
                for parameter, values, spec in latent:
                    parameter.copy_(rounded_values(values, _kind(spec), spec.weight_block))
            self._are_rounded = True
            yield
        finally:
            self._are_rounded = False
            # What `fully_shard` has gathered for a pass without a gradient would stay, rounded.
            if isinstance(self, _Sharded):
                self.reshard()
            with torch.no_grad():
                for parameter, values, _ in latent:
                    parameter.copy_(values)

    def tree(self) -> Weights[Leaf]:
        """The weights tree over the parameters as they are now: sharding replaces them from pass to pass."""
        return map_leaves(self._leaf, self._specs)

    def _leaf(self, name: str, spec: Spec) -> Leaf:
        parameter = self.get_parameter(name)
        values: Tensor = parameter
        if is_latent(spec, self.precision) and not self._are_rounded:
            values = rounded_weights(parameter, _kind(spec), spec.weight_block)
        if spec.kind == "dense":
            return values
        block = 0 if self.precision == "float" else spec.activation_block
        return FloatLinear(values=values, activation_block=block)

    def stored(self) -> Weights[Stored]:
        """The weights as NumPy leaves: latent ones stay latent, float16 ones are rounded."""

        def leaf(name: str, spec: Spec) -> Stored:
            values = np.array(self.get_parameter(name).detach().cpu().numpy(), np.float32)
            # A number beyond float16 becomes infinite, which `freeze` refuses.
            with np.errstate(over="ignore"):
                return leaf_of(spec, values)

        return map_leaves(leaf, self._specs)

    def forward(
        self,
        tokens: Tensor,
        loss: Callable[..., Result],
        *arguments: Tensor,
        segments: Tensor | None = None,
        ops: TorchOps | None = None,
        has_heads: bool = True,
    ) -> Result:
        """``loss(outputs, *arguments)`` of the `TrainingOutputs` for tokens (B, T), perhaps in packed documents.

        The loss is formed inside the pass, because there sharded parameters are whole. `ops` stands for the model's
        own, and `has_heads` says whether the extra heads run.
        """
        weights = self.tree()
        if not has_heads:
            weights = replace(weights, ahead=(), joins=())
        later = [functional.pad(tokens[:, n:], (0, n)) for n in range(1, len(weights.joins) + 1)]
        outputs = training_outputs(
            tokens,
            weights,
            self.config,
            ops or self.ops,
            segments,
            later=later,
            layer=self.layer,
        )
        return loss(outputs, *arguments)


def is_latent(spec: Spec, precision: Literal["ternary", "float"]) -> bool:
    """Whether a parameter stands for rounded numbers."""
    return precision == "ternary" and (spec.kind, spec.dtype) != ("dense", "float32")


@runtime_checkable
class _Sharded(Protocol):
    """What `torch.distributed.fsdp.fully_shard` makes of a module."""

    def reshard(self) -> None: ...


def _kind(spec: Spec) -> RoundedKind:
    if spec.kind != "dense":
        return spec.kind
    assert spec.dtype != "float32"
    return spec.dtype


def _register(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    *path, last = name.split(".")
    module = root
    for part in path:
        if part not in dict(module.named_children()):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, parameter)
