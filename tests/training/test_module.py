"""The module that owns the parameters: when they are rounded, and that sharding leaves their gradients as they are."""

import dataclasses
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from nanochat.backends.torch import linears
from nanochat.backends.torch.ops import TorchOps
from nanochat.config import ModelConfig
from nanochat.init import init
from nanochat.model import TrainingOutputs
from nanochat.presets import preset
from nanochat.training import module
from nanochat.training.module import LanguageModel
from nanochat.weights import Attention, Spec, named_leaves

SMALL = ModelConfig(
    vocab_size=32,
    width=128,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    ffn_width=128,
    weight_block=128,
    coefficients="dynamic",
)
OPS = TorchOps("cpu")
TOKENS = torch.arange(12).reshape(2, 6)
TARGETS = TOKENS + 1


def language_model(config: ModelConfig = SMALL) -> LanguageModel:
    model = LanguageModel(config, init(config, np.random.default_rng(0)), OPS)
    # Numbers that start at zero would hide the paths behind them.
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def loss(model: torch.nn.Module) -> torch.Tensor:
    result: torch.Tensor = model(TOKENS, mean_cross_entropy, TARGETS)
    return result


def mean_cross_entropy(
    outputs: TrainingOutputs[torch.Tensor, linears.Leaf], targets: torch.Tensor
) -> torch.Tensor:
    losses = [OPS.cross_entropy(step, outputs.table, targets) for step in outputs.steps]
    return torch.stack(losses).mean()


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def count_roundings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of each rounding of weights from now on."""
    kinds: list[str] = []

    def counted(values: torch.Tensor, kind: str, weight_block: int) -> torch.Tensor:
        kinds.append(kind)
        return linears.rounded_values(values, kind, weight_block)  # type: ignore[arg-type]

    for name in ("rounded_values", "rounded_weights"):
        monkeypatch.setattr(module, name, counted)
    return kinds


def test_weights_are_rounded_once_for_all_passes_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model(dataclasses.replace(SMALL, loop_count=3))
    kinds = count_roundings(monkeypatch)

    with model.rounded():
        loss(model).backward()
        loss(model).backward()

    # Seven matrices and two projections for each layer, and the table.
    assert sorted(kinds) == ["float16"] * 4 + ["int8"] + ["ternary"] * 14


def test_a_pass_alone_rounds_each_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model(dataclasses.replace(SMALL, loop_count=3))
    kinds = count_roundings(monkeypatch)

    loss(model)

    assert len(kinds) == 19


def test_gradients_of_rounded_weights_are_straight_through() -> None:
    model = language_model()
    loss(model).backward()
    expected = gradients(model)

    with model.rounded():
        loss(model).backward()

    found = gradients(model)
    assert found.keys() == dict(model.named_parameters()).keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-8)


def test_parameters_are_latent_again_after_a_step() -> None:
    model = language_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    with model.rounded():
        inside = model.get_parameter("layers.0.mixer.q").detach().clone()

    assert torch.equal(inside, linears.rounded_values(before["layers.0.mixer.q"], "ternary", 128))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.skipif(
    shutil.which("c++") is None, reason="the compiler of torch needs a C++ compiler"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_pass_multiplies_with_the_numbers_of_the_file() -> None:
    model = language_model()

    @torch.compile
    def weights() -> list[torch.Tensor]:
        layer = model.tree().layers[0]
        assert isinstance(layer.mixer, Attention)
        assert isinstance(layer.mixer.q, linears.FloatLinear)
        table = model.tree().embedding
        assert isinstance(table, linears.FloatLinear)
        return [layer.mixer.q.values * 1.0, table.values * 1.0]

    found = weights()

    with model.rounded():
        for compiled, name in zip(found, ("layers.0.mixer.q", "embedding"), strict=True):
            assert torch.equal(compiled, model.get_parameter(name)), name


def test_the_unquantised_twin_rounds_nothing() -> None:
    model = LanguageModel(SMALL, init(SMALL, np.random.default_rng(0)), OPS, "float")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    with model.rounded():
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_no_array_of_the_start_is_kept() -> None:
    model = language_model(preset("tiny"))

    assert not [value for value in vars(model).values() if isinstance(value, np.ndarray)]
    leaves = dict(named_leaves(model._specs)).values()
    assert not [leaf for leaf in leaves if not isinstance(leaf, Spec)]


# One process is a group of its own: parameters are cut into one part and put together again.
SHARDED = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from tests.training.test_module import gradients, language_model, loss

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
plain, model = language_model(), language_model()
if sys.argv[1] == "fully_shard":
    wrapped = fully_shard(model)
else:
    wrapped = DistributedDataParallel(model)

with torch.no_grad(), model.rounded():
    loss(wrapped)
for expected, found in ((plain, wrapped), (plain, wrapped)):
    with plain.rounded(), model.rounded():
        loss(plain).backward()
        loss(wrapped).backward()
    theirs = gradients(model)
    ours = gradients(plain)
    assert ours.keys() == theirs.keys() == dict(plain.named_parameters()).keys(), theirs.keys()
    for name, gradient in ours.items():
        other = theirs[name]
        other = other.full_tensor() if hasattr(other, "full_tensor") else other
        torch.testing.assert_close(other, gradient, rtol=0, atol=0)
        assert gradient.any(), name
loss(plain).backward()
loss(wrapped).backward()
ours, theirs = gradients(plain), gradients(model)
assert ours.keys() == theirs.keys()
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.parametrize("how", ["fully_shard", "DistributedDataParallel"])
def test_every_parameter_gets_the_gradient_that_it_gets_without_sharding(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, how], capture_output=True, text=True, check=False
    )

    assert done.stdout == "equal\n", done.stderr
