"""Update rules against the frameworks' own and against linear algebra."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from nanochat.training.rules.adamw import AdamW, adamw
from nanochat.training.rules.lion import Lion, lion
from nanochat.training.rules.muon import _POLAR_EXPRESS, Muon, muon, orthogonalize
from nanochat.training.rules.rule import updated


def matrix(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator)


def test_adamw_takes_the_same_three_steps_as_torch() -> None:
    ours, gradients = matrix(5, 7), [matrix(5, 7) * scale for scale in (1.0, -0.3, 2.0)]
    theirs = torch.nn.Parameter(ours.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    state: dict[str, torch.Tensor] = {}

    for step, gradient in enumerate(gradients, start=1):
        settings = AdamW(weight_decay=0.1)
        ours, state = adamw(ours, gradient, state, settings, rate=0.01, step=step)
        theirs.grad = gradient.clone()
        optimizer.step()

    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_lion_moves_every_number_by_the_learning_rate() -> None:
    start, gradient = matrix(4, 6), matrix(4, 6)

    moved, _ = lion(start, gradient, {}, Lion(), rate=0.5, step=1)

    torch.testing.assert_close(moved, start - 0.5 * gradient.sign())


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8), (1, 5)], ids=str)
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalize(matrix(*shape)))

    assert values.min() > 0.8
    assert values.max() < 1.2


def test_orthogonalize_keeps_the_singular_vectors() -> None:
    left, _, right = np.linalg.svd(matrix(6, 6).numpy())

    result = orthogonalize(matrix(6, 6)).numpy()

    inner = left.T @ result @ right.T
    np.testing.assert_allclose(inner - np.diag(np.diag(inner)), 0, atol=1e-4)


@pytest.mark.parametrize("iterations", [1, 2, 5])
@pytest.mark.parametrize("shape", [(8, 32), (96, 24), (3, 16, 48)], ids=str)
def test_wide_and_tall_matrices_are_made_orthogonal_by_the_same_polynomials(
    shape: tuple[int, ...], iterations: int
) -> None:
    x = matrix(*shape).double()
    tall = shape[-2] > shape[-1]
    expected = x.mT if tall else x
    expected = expected / (expected.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in _POLAR_EXPRESS[:iterations]:
        gram = expected @ expected.mT
        expected = a * expected + b * gram @ expected + c * gram @ gram @ expected

    found = orthogonalize(matrix(*shape), _POLAR_EXPRESS[:iterations])

    torch.testing.assert_close(found.double(), expected.mT if tall else expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("scale", ["shape", "rms"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_takes_the_same_three_steps_as_torch(
    scale: Literal["shape", "rms"], nesterov: bool
) -> None:
    ours, gradients = matrix(48, 16), [matrix(48, 16) * s for s in (1.0, -0.3, 2.0)]
    theirs = torch.nn.Parameter(ours.clone())
    adjust = {"shape": "original", "rms": "match_rms_adamw"}[scale]
    optimizer = torch.optim.Muon(
        [theirs], lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn=adjust
    )
    settings = Muon(
        weight_decay=0.1, momentum=0.9, nesterov=nesterov, polynomials="jordan", scale=scale
    )
    start, state = ours, dict[str, torch.Tensor]()

    for step, gradient in enumerate(gradients, start=1):
        ours, state = muon(ours, gradient, state, settings, rate=0.02, step=step)
        theirs.grad = gradient.clone()
        optimizer.step()

    # Theirs multiplies in bfloat16.
    error = (ours - theirs.detach()).norm() / (ours - start).norm()
    assert error < 0.02


def test_jordans_polynomials_bring_singular_values_where_they_should() -> None:
    settings = Muon(polynomials="jordan")
    moved, _ = muon(torch.zeros(64, 64), matrix(64, 64), {}, settings, rate=1.0, step=1)

    values = torch.linalg.svdvals(moved)
    assert values.max() < 1.2
    # Of random matrices some are nearly singular, which it does not bring up.
    assert values.median() > 0.68


def test_cautious_decay_shrinks_what_the_update_makes_smaller() -> None:
    start, gradient = matrix(16, 16), matrix(16, 16).flip(0)
    settings = Muon(weight_decay=0.5)
    plain, _ = muon(start, gradient, {}, Muon(), rate=0.1, step=1)
    all_of_it, _ = muon(start, gradient, {}, settings, rate=0.1, step=1)

    found, _ = muon(start, gradient, {}, replace(settings, cautious=True), rate=0.1, step=1)

    smaller = (plain - start) * start < 0
    assert 0.2 < smaller.float().mean() < 0.8
    torch.testing.assert_close(found, torch.where(smaller, all_of_it, plain))


def test_a_stack_of_matrices_is_updated_like_each_alone() -> None:
    start, gradient = matrix(3, 8, 16), matrix(3, 8, 16)

    together, _ = muon(start, gradient, {}, Muon(), rate=0.02, step=1)
    alone = torch.stack(
        [muon(start[i], gradient[i], {}, Muon(), rate=0.02, step=1)[0] for i in range(3)]
    )

    torch.testing.assert_close(together, alone)


def test_the_rules_run_on_mlx_arrays() -> None:
    mx = pytest.importorskip("mlx.core")
    start, gradient = matrix(4, 8), matrix(4, 8)

    for settings in (Muon(), Muon(weight_decay=0.1, cautious=True), AdamW(), Lion()):
        arrays = mx.array(start.numpy()), mx.array(gradient.numpy())
        moved, _ = updated(*arrays, {}, settings, rate=0.02, step=1)
        expected, _ = updated(start, gradient, {}, settings, rate=0.02, step=1)
        np.testing.assert_allclose(np.array(moved), expected.numpy(), atol=1e-4)
