"""This file holds what a run will take, counted before it begins: operations, memory, and with a speed the time.

Operations are those of the model, as for a utilisation of the hardware: forward once, backward twice, whatever is
computed again. Memory is the larger of two: a pass, with what it keeps for its gradients, and an update, whose copies
come after that is gone.

References
----------
.. [1] A. Chowdhery et al., "PaLM: Scaling Language Modeling with Pathways", 2022, appendix B. arXiv:2204.02311
"""

import math
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nanochat.backends.reference.ops import pieces
from nanochat.backends.torch.linears import FloatLinear, Leaf
from nanochat.backends.torch.ops import TorchOps
from nanochat.config import ModelConfig
from nanochat.cost import cost
from nanochat.model import run_layer
from nanochat.shapes import layer_kinds, run_order, shapes
from nanochat.training.module import is_latent
from nanochat.training.phases import num_tokens, stages
from nanochat.training.products import measured, with_products
from nanochat.training.recipe import Recipe
from nanochat.training.roles import trained_rule
from nanochat.training.rules.rule import kept
from nanochat.training.updater import MOST_BYTES
from nanochat.weights import Layer, Spec, map_leaves, named_leaves

__all__ = ["Estimate", "estimate", "flops_per_token", "seconds"]

_FLOAT = 4
# Of what layers keep when nothing is compiled; measured with the shapes of tiny and nano-125m.
_COMPILED = 0.8
# Torch itself, with what it compiles.
_RUNTIME = 420_000_000
# Of the speed of products, measured with tiny; the rest is what they do not make faster.
_FLOAT_SHARE, _BFLOAT_SHARE = 0.6, 0.3
# Copies of the parameters that are updated together.
_COPIES = 5


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run takes.

    `flops` are those of the whole run, `flops_per_token` the mean. Bytes are those of the phase that takes most:
    `weights` with their rounded copies, `gradients`, `optimizer` state, and what is there for a while, `activations` or
    the copies of an update.
    """

    parameters: int
    trained: int
    steps: int
    tokens: int
    flops: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def flops_per_token(self) -> int:
        """Of training on one token."""
        return self.flops // self.tokens

    @property
    def tokens_per_parameter(self) -> float:
        """How much the model reads for its size."""
        return self.tokens / self.parameters

    @property
    def bytes(self) -> int:
        """Memory of the process, at its highest, when it is compiled."""
        return _RUNTIME + self.weights + self.gradients + self.optimizer + self.activations

    def shortened(self, steps: int) -> "Estimate":
        """The same of fewer steps, all of which are alike."""
        return replace(
            self,
            steps=steps,
            tokens=self.tokens * steps // self.steps,
            flops=self.flops * steps // self.steps,
        )


def estimate(recipe: Recipe) -> Estimate:
    """Count what a recipe takes; of each kind of layer one sequence is traced, without numbers.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> found = estimate(Recipe(model=preset("tiny"), steps=1000))
    >>> found.parameters, found.tokens, found.flops_per_token
    (5771648, 8192000, 39790848)
    """
    of_phases = [_of_phase(stage.recipe) for stage in stages(recipe)]
    most = max(of_phases, key=lambda each: each.bytes)
    return replace(
        most,
        steps=recipe.steps,
        tokens=num_tokens(stages(recipe), recipe.steps),
        flops=sum(
            each.flops // each.tokens * num_tokens([stage], recipe.steps)
            for each, stage in zip(of_phases, stages(recipe), strict=True)
        ),
    )


def seconds(
    found: Estimate, recipe: Recipe, *, device: str = "auto", num_threads: int | None = None
) -> float:
    """How long a run would take here, by a measurement of a fifth of a second; without evaluations."""
    ops = TorchOps(device, num_threads=num_threads)
    speeds = measured(recipe.model.width, ops.torch_device)
    decided = stages(with_products(recipe, speeds))
    is_float = all(stage.recipe.precision.products == "float32" for stage in decided)
    share, products = (_FLOAT_SHARE, "float32") if is_float else (_BFLOAT_SHARE, "bfloat16")
    return found.flops / (share * speeds.peak(products))


def _of_phase(recipe: Recipe) -> Estimate:
    """What a run would take that has these settings throughout."""
    config, data = recipe.model, recipe.data
    specs = dict(named_leaves(shapes(config)))
    sizes = {name: math.prod(spec.shape) for name, spec in specs.items()}
    rules = {name: trained_rule(recipe.optimizer, name, spec) for name, spec in specs.items()}
    trained = sum(sizes[name] for name, rule in rules.items() if rule is not None)
    rounded = sum(
        sizes[name] for name, spec in specs.items() if is_latent(spec, recipe.precision.weights)
    )
    state = sum(
        math.prod(each.shape) * np.dtype(each.dtype).itemsize
        for name, rule in rules.items()
        if rule is not None
        for each in kept(rule, specs[name].shape).values()
    )
    rows = (data.microbatch or data.batch_size) * data.length
    update = _COPIES * min(MOST_BYTES, _FLOAT * trained)
    tokens = data.batch_size * data.length * recipe.steps
    return Estimate(
        parameters=sum(sizes.values()),
        trained=trained,
        steps=recipe.steps,
        tokens=tokens,
        flops=flops_per_token(config, data.length) * tokens,
        weights=_FLOAT * (sum(sizes.values()) + rounded),
        gradients=_FLOAT * trained,
        optimizer=state,
        activations=max(update, _activations(recipe, rows)),
    )


@cache
def flops_per_token(config: ModelConfig, length: int) -> int:
    """Operations of training on one token of a sequence of that length, forward and backward."""
    found = cost(config, context=length)
    # A token sees half of the others, on average; the head is read after every loop step, and by every extra head.
    tree = shapes(config)
    head = math.prod((tree.embedding if tree.head is None else tree.head).shape)
    sizes = {name: math.prod(spec.shape) for name, spec in named_leaves(tree)}
    ahead = sum(size for name, size in sizes.items() if name.startswith(("ahead.", "joins.")))
    looking = (
        found.attention_flops + 4 * config.num_ahead * config.num_heads * config.head_dim * length
    )
    reads = config.loop_count - 1 + config.num_ahead
    forward = (
        found.flops_per_token - found.attention_flops + looking // 2 + 2 * (reads * head + ahead)
    )
    return 3 * forward


def _activations(recipe: Recipe, rows: int) -> int:
    """Bytes that are there at the end of a pass through the layers, or in the gradient of one."""
    config, length = recipe.model, recipe.data.length
    ops = TorchOps("cpu", getattr(torch, recipe.precision.products, torch.float32))
    masked = recipe.data.packing == "best-fit" or recipe.data.document_masks
    of_kind = {
        kind: _COMPILED * kept * rows / length
        for kind, kept in _kept_by_layers(config, ops, length, masked=masked).items()
    }
    kinds = layer_kinds(config)
    layers = [of_kind[kinds[number]] for number in run_order(config)]
    layers += [of_kind.get("ahead", 0.0)] * config.num_ahead
    largest = max(layers)
    if recipe.run.activation_checkpointing:
        layers = [_FLOAT * rows * config.num_streams * config.width] * len(layers)
    # What is read out, its norm, and the gradients of both; logits are formed in pieces.
    head = config.loop_count * 4 * _FLOAT * rows * config.width
    logits = 2 * _FLOAT * (pieces(rows, config.vocab_size)[0].stop) * config.vocab_size
    # The gradients of one layer take about twice what it kept.
    return int(sum(layers) + 2 * largest + head + logits)


def _kept_by_layers(
    config: ModelConfig, ops: TorchOps, length: int, *, masked: bool
) -> dict[str, int]:
    """Bytes that each kind of layer keeps of one sequence for its gradient, besides its parameters, uncompiled.

    That of an extra head is called "ahead".
    """
    if config.num_experts:
        # As many features as a token passes; which expert has how many tokens is not known without numbers.
        width = config.experts_per_token * config.expert_width + config.shared_expert_width
        config = replace(config, num_experts=0, shared_expert_width=0, ffn_width=width)
    streams = (config.num_streams,) if config.num_streams > 1 else ()
    found: dict[str, int] = {}
    with FakeTensorMode():
        parameters: set[int] = set()

        def leaf(_: str, spec: Spec) -> Leaf:
            values = torch.empty(spec.shape, requires_grad=True)
            parameters.add(values.untyped_storage()._cdata)
            if spec.kind == "dense":
                return values
            return FloatLinear(values=values, activation_block=spec.activation_block)

        # All of it stays, for what is freed may come again as something that is kept.
        tree = map_leaves(leaf, shapes(config))
        segments = torch.zeros((1, length), dtype=torch.int64) if masked else None
        for kind, layer in zip(layer_kinds(config), tree.layers, strict=True):
            if kind not in found:
                x = torch.empty((1, length, *streams, config.width), requires_grad=True)
                found[kind] = sum(_kept(x, segments, layer, config, ops, parameters))
        for layer in tree.ahead[:1]:
            x = torch.empty((1, length, config.width), requires_grad=True)
            found["ahead"] = sum(_kept(x, segments, layer, config, ops, parameters))
    return found


def _kept(
    x: Tensor,
    segments: Tensor | None,
    layer: Layer[Leaf],
    config: ModelConfig,
    ops: TorchOps,
    parameters: Set[int],
) -> Iterator[int]:
    kept: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run_layer(x, layer, None, config, ops, segments)
    return (
        tensor.untyped_storage().nbytes()
        for place, tensor in kept.items()
        if place not in parameters
    )
