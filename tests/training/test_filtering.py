"""Tokens that are dropped from the loss, and whose keys and values then have no gradient either."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from nanochat.backends.torch.ops import TorchOps
from nanochat.errors import ConfigError
from nanochat.training.layers import compiled_layer, compiling
from nanochat.training.loop import Trainer
from nanochat.training.objectives.filtering import FilteringOps
from tests.training.runs import batch_of, entries, quiet, recipe

DROPPING = {"keep_tokens": 0.5, "drop_attention_gradients": True}


def test_keys_and_values_of_dropped_tokens_have_no_gradient_and_others_have_theirs() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, upstream = (
        torch.randn(2, 7, 2, 4, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    plain, filtering = TorchOps("cpu", torch.float64), FilteringOps("cpu", torch.float64)
    filtering.is_kept = torch.arange(14).view(2, 7) % 3 == 0

    def attend(ops: TorchOps) -> tuple[Tensor, tuple[Tensor, ...]]:
        given = [x.clone().requires_grad_() for x in (q, k, v)]
        y = ops.attention(*given, state=None, slot=0)
        return y.detach(), torch.autograd.grad(y, given, upstream)

    whole, (of_q, of_k, of_v) = attend(plain)
    found, (ours_q, ours_k, ours_v) = attend(filtering)

    kept = filtering.is_kept[:, :, None, None]
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(ours_q, of_q)
    torch.testing.assert_close(ours_k, of_k * kept)
    torch.testing.assert_close(ours_v, of_v * kept)


def test_kept_keys_and_values_agree_with_finite_differences() -> None:
    """Along those that are kept; the others are constants."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 5, 1, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    ops = FilteringOps("cpu", torch.float64)
    ops.is_kept = torch.tensor([[True, False, True, False, True]])

    def attend(q: Tensor, kept_k: Tensor, kept_v: Tensor) -> Tensor:
        places = torch.tensor([0, 2, 4])
        given = (x.index_copy(1, places, new) for x, new in ((k, kept_k), (v, kept_v)))
        return ops.attention(q, *given, state=None, slot=0)

    inputs = [x.clone().requires_grad_() for x in (q, k[:, ::2], v[:, ::2])]
    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("model", [{}, {"num_experts": 4, "expert_width": 128}], ids=str)
def test_nothing_of_a_dropped_token_has_a_gradient(
    model: dict[str, object], data: Path, tmp_path: Path
) -> None:
    settings = recipe(model={"tie_embeddings": False, "num_layers": 3, **model}, objective=DROPPING)
    trainer = Trainer(settings, data, tmp_path, num_threads=1, compile_model=False)
    inputs = torch.from_numpy(np.random.default_rng(0).permutation(300)[:128].reshape(2, 64))
    embedding = trainer.model.get_parameter("embedding")

    trainer._terms(inputs, inputs.roll(-1, dims=1))["objective"].backward()

    assert embedding.grad is not None
    has_gradient = embedding.grad.abs().sum(dim=1) != 0
    # Each token is there once: half of them are kept.
    assert int(has_gradient.sum()) == 64
    assert set(has_gradient.nonzero()[:, 0].tolist()) <= set(inputs.flatten().tolist())


def test_the_loss_is_the_same_with_and_without_these_gradients(data: Path, tmp_path: Path) -> None:
    found = []
    for name, flag in (("with", True), ("without", False)):
        settings = recipe(objective={"keep_tokens": 0.5, "drop_attention_gradients": flag})
        trainer = Trainer(settings, data, tmp_path / name, num_threads=1, compile_model=False)
        found.append(trainer._terms(*batch_of(trainer)))

    torch.testing.assert_close(found[0], found[1])


def test_layers_are_compiled_once_for_all_choices_of_tokens(data: Path, tmp_path: Path) -> None:
    settings = recipe(objective=DROPPING)
    trainer = Trainer(settings, data, tmp_path, num_threads=1, compile_model=False)
    counter = CompileCounterWithBackend("aot_eager")
    trainer.model.layer = compiled_layer(backend=counter, fullgraph=True)

    def step(number: int) -> None:
        batch = batch_of(trainer, number)
        with trainer.model.rounded(), compiling():
            trainer._terms(*batch)["objective"].backward()

    step(0)
    compiled = counter.frame_count
    for number in (1, 2):
        step(number)

    # A pass without gradients, which chooses, and one with them.
    assert counter.frame_count == compiled == 2


def test_a_run_without_the_gradients_of_dropped_tokens_ends(data: Path, tmp_path: Path) -> None:
    settings = recipe(
        steps=2,
        schedule={"warmup_steps": 0, "decay_steps": 0},
        model={"loop_count": 2, "num_ahead": 1},
        objective=DROPPING,
        run={"evaluation_windows": 1, "activation_checkpointing": True},
    )

    assert Trainer(settings, data, tmp_path, num_threads=1, compile_model=False).run(quiet)

    lines = [line for line in entries(tmp_path) if "loss" in line]
    assert all(np.isfinite([line["loss"], line["kept_loss"]]).all() for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"drops nothing while all tokens are kept: set objective\.keep_tokens=0\.5"),
        (
            {"keep_tokens": 0.5},
            r"delta layers pass gradients on .*; set objective\.drop_attention_gradients=false",
        ),
    ],
    ids=str,
)
def test_gradients_that_cannot_be_dropped_are_refused(
    changes: dict[str, object], message: str
) -> None:
    model = {"layer_pattern": ["delta", "attention"]} if changes else {}
    with pytest.raises(ConfigError, match=message):
        recipe(model=model, objective={"drop_attention_gradients": True, **changes})
