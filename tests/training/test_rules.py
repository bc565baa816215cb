"""Update rules against the frameworks' own and against linear algebra."""

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from nanochat.training.rules.adamw import AdamW
from nanochat.training.rules.arrays import Kept
from nanochat.training.rules.blocks import dequantized, quantized
from nanochat.training.rules.lion import Lion
from nanochat.training.rules.low_rank import _subspace
from nanochat.training.rules.muon import _POLAR_EXPRESS, Muon, orthogonalize
from nanochat.training.rules.rule import Rule, kept, updated

RULES_WITH_STATES: list[Rule] = [
    Muon(),
    Muon(average="int8"),
    Muon(row_beta=0.95),
    Muon(average="int8", row_beta=0.95),
    AdamW(),
    AdamW(weight_decay=0.1, cautious=True),
    AdamW(rank=3),
    Muon(rank=3, average="int8", weight_decay=0.1),
    Lion(),
]


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
        ours, state = updated(ours, gradient, state, settings, rate=0.01, step=step)
        theirs.grad = gradient.clone()
        optimizer.step()

    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_lion_takes_the_steps_of_its_paper() -> None:
    ours, gradients = matrix(5, 7), [matrix(5, 7).roll(k, 1) * (k + 0.5) for k in range(4)]
    expected, average = ours.double(), torch.zeros(5, 7).double()
    state: dict[str, torch.Tensor] = {}
    settings = Lion(first_beta=0.6, second_beta=0.9, weight_decay=0.1)

    for step, gradient in enumerate(gradients, start=1):
        ours, state = updated(ours, gradient, state, settings, rate=0.05, step=step)
        direction = (0.6 * average + 0.4 * gradient.double()).sign()
        expected = expected - 0.05 * (direction + 0.1 * expected)
        average = 0.9 * average + 0.1 * gradient.double()

    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-6)


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
        ours, state = updated(ours, gradient, state, settings, rate=0.02, step=step)
        theirs.grad = gradient.clone()
        optimizer.step()

    # Theirs multiplies in bfloat16.
    error = (ours - theirs.detach()).norm() / (ours - start).norm()
    assert error < 0.02


def float64_muon(
    start: torch.Tensor,
    gradients: list[torch.Tensor],
    momenta: list[float],
    *,
    row_beta: float = 0.0,
    block: int = 0,
) -> torch.Tensor:
    """Steps of Muon as its papers write them, one matrix, rate 0.1, in float64."""
    weight, average = start.double(), torch.zeros_like(start).double()
    rows = torch.zeros(len(start), 1).double()
    for gradient, momentum in zip(gradients, momenta, strict=True):
        average = momentum * average + gradient.double()
        update = orthogonalize(gradient.double() + momentum * average)
        if row_beta:
            rows = row_beta * rows + (1 - row_beta) * update.square().mean(1, keepdim=True)
            even = update / rows.sqrt()
            update = even * update.norm() / even.norm()
        weight = weight - 0.1 * max(1, len(start) / start.shape[1]) ** 0.5 * update
        if block:
            blocks = average.view(-1, block)
            scales = blocks.abs().amax(1, keepdim=True) / 127
            average = (torch.round(blocks / scales) * scales).view(average.shape)
    return weight


@pytest.mark.parametrize(
    ("settings", "momenta", "others"),
    [
        pytest.param(Muon(), [0.95, 0.95, 0.95], {}, id="muon"),
        pytest.param(Muon(row_beta=0.9), [0.95, 0.95, 0.95], {"row_beta": 0.9}, id="normuon"),
        pytest.param(Muon(average="int8"), [0.95, 0.95, 0.95], {"block": 1536}, id="int8"),
        pytest.param(
            Muon(first_momentum=0.8, momentum=0.9, momentum_warmup_steps=2),
            [0.8, 0.85, 0.9],
            {},
            id="warm-up",
        ),
    ],
)
@pytest.mark.parametrize("num_matrices", [1, 3])
def test_muon_takes_the_steps_of_its_papers(
    settings: Muon, momenta: list[float], others: dict[str, Any], num_matrices: int
) -> None:
    start = matrix(num_matrices, 96, 48)
    gradients = [matrix(num_matrices, 96, 48).roll(k, 1) * (k + 1.0) for k in range(3)]
    ours, state = start, dict[str, torch.Tensor]()

    for step, gradient in enumerate(gradients, start=1):
        ours, state = updated(ours, gradient, state, settings, rate=0.1, step=step)

    expected = torch.stack(
        [
            float64_muon(each, [gradient[i] for gradient in gradients], momenta, **others)
            for i, each in enumerate(start)
        ]
    )
    # Of an update, whose numbers are about 0.1: a code that rounds to the other side moves it.
    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("settings", RULES_WITH_STATES, ids=repr)
@pytest.mark.parametrize("shape", [(96, 48), (7, 11), (2, 64, 96)], ids=str)
def test_a_rule_keeps_what_it_says(settings: Rule, shape: tuple[int, ...]) -> None:
    _, state = updated(matrix(*shape), matrix(*shape), {}, settings, rate=0.1, step=1)

    found = {kind: Kept(tuple(x.shape), str(x.dtype)[6:]) for kind, x in state.items()}  # type: ignore[arg-type]  # a name
    assert found == kept(settings, shape)


def test_an_average_in_eight_bits_takes_a_quarter_of_the_bytes() -> None:
    def num_bytes(settings: Muon) -> int:
        _, state = updated(matrix(256, 384), matrix(256, 384), {}, settings, rate=0.1, step=1)
        return sum(each.nbytes for each in state.values())

    assert num_bytes(Muon(average="int8")) < 0.27 * num_bytes(Muon())


@pytest.mark.parametrize("shape", [(64, 96), (7, 11), (2, 3, 5)], ids=str)
def test_numbers_in_eight_bits_are_within_half_a_scale(shape: tuple[int, ...]) -> None:
    numbers = matrix(*shape)
    numbers[..., 0, :] *= 100

    codes, scales = quantized(numbers)

    assert codes.dtype == torch.int8
    assert (dequantized(codes, scales) - numbers).abs().max() <= 0.501 * scales.max()


def test_a_block_of_zeros_in_eight_bits_stays_zero() -> None:
    codes, scales = quantized(torch.zeros(4, 8))

    assert not dequantized(codes, scales).any()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 24)], ids=str)
def test_galore_takes_the_steps_of_its_paper(shape: tuple[int, int]) -> None:
    # As most gradients, these have a few large directions.
    left, _, right = torch.linalg.svd(matrix(*shape).double(), full_matrices=False)
    values = 0.5 ** torch.arange(24).double()
    gradients = [(left.roll(k, 0) * values * (k + 1) @ right.roll(k, 1)).float() for k in range(3)]
    ours, state = matrix(*shape), dict[str, torch.Tensor]()
    expected, tall = matrix(*shape).double(), shape[0] > shape[1]
    settings = AdamW(rank=5, period=2, weight_decay=0.1)
    first = second = basis = torch.zeros(())

    for step, gradient in enumerate(gradients, start=1):
        ours, state = updated(ours, gradient, state, settings, rate=0.1, step=step)
        if step in (1, 3):
            u, _, v = torch.linalg.svd(gradient.double(), full_matrices=False)
            # A direction has no sign, and moments are read with the one that it got.
            basis = v.mT[:, :5] if tall else u[:, :5]
            signs = (basis.mT @ state["basis"].double().flip(-1)).diagonal()
            assert signs.abs().min() > 0.999
            basis = basis * signs.sign()
        low = gradient.double() @ basis if tall else basis.mT @ gradient.double()
        first, second = 0.9 * first + 0.1 * low, 0.95 * second + 0.05 * low**2
        adam = first / (1 - 0.9**step) / ((second / (1 - 0.95**step)).sqrt() + 1e-8)
        back = adam @ basis.mT if tall else basis @ adam
        expected = expected * (1 - 0.1 * 0.1) - 0.1 * 0.25 * back

    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("scale", ["shape", "spectral", "rms"])
@pytest.mark.parametrize("average", ["float32", "int8"])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)], ids=str)
def test_muon_in_a_subspace_has_the_scale_of_the_whole_matrix(
    shape: tuple[int, int], average: Literal["float32", "int8"], scale: Any
) -> None:
    gradients = [matrix(*shape).roll(k, 1) * (k + 1.0) for k in range(3)]
    settings = Muon(rank=5, alpha=0.5, average=average, scale=scale, weight_decay=0.1)
    ours, state = matrix(*shape), dict[str, torch.Tensor]()
    expected, tall = matrix(*shape).double(), shape[0] > shape[1]
    before = torch.zeros(()).double()
    factor = {
        "shape": max(1, shape[0] / shape[1]) ** 0.5,
        "spectral": (shape[0] / shape[1]) ** 0.5,
        "rms": 0.2 * max(shape) ** 0.5,
    }[scale]

    for step, gradient in enumerate(gradients, start=1):
        ours, state = updated(ours, gradient, state, settings, rate=0.1, step=step)
        basis = state["basis"].double()
        low = gradient.double() @ basis if tall else basis.mT @ gradient.double()
        before = 0.95 * before + low
        update = orthogonalize(low + 0.95 * before)
        back = update @ basis.mT if tall else basis @ update
        expected = expected * (1 - 0.1 * 0.1) - 0.1 * 0.5 * factor * back
        if average == "int8":
            # A block for all 200 numbers.
            block = before.abs().max() / 127
            before = torch.round(before / block) * block

    torch.testing.assert_close(ours.double(), expected, rtol=0, atol=1e-4)


def test_a_subspace_holds_as_much_of_a_matrix_as_any_of_its_rank_can() -> None:
    # Singular values that fall slowly are the hard case.
    numbers = matrix(96, 160)
    basis = _subspace(numbers, 24)

    best = torch.linalg.svdvals(numbers)[:24].square().sum()

    torch.testing.assert_close(basis.mT @ basis, torch.eye(24), rtol=0, atol=1e-5)
    assert (basis.mT @ numbers).square().sum() > 0.97 * best


def test_galore_of_a_quarter_takes_less_than_half_the_bytes_of_adamw() -> None:
    def num_bytes(settings: AdamW) -> int:
        _, state = updated(matrix(64, 64), matrix(64, 64), {}, settings, rate=0.1, step=1)
        return sum(each.nbytes for each in state.values())

    assert num_bytes(AdamW(rank=16)) <= 0.5 * num_bytes(AdamW())


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)], ids=str)
def test_a_spectral_scale_is_the_root_of_rows_over_columns(shape: tuple[int, int]) -> None:
    start = torch.zeros(*shape)
    moved, _ = updated(start, matrix(*shape), {}, Muon(scale="spectral"), rate=1.0, step=1)

    expected = -orthogonalize(matrix(*shape)) * (shape[0] / shape[1]) ** 0.5

    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-4)


def test_jordans_polynomials_are_those_of_a_matrix_of_norm_one() -> None:
    settings = Muon(polynomials="jordan")
    moved, _ = updated(torch.zeros(16, 24), matrix(16, 24), {}, settings, rate=1.0, step=1)

    expected = matrix(16, 24).double()
    expected = expected / expected.norm()
    for _ in range(5):
        gram = expected @ expected.mT
        expected = (3.4445 * torch.eye(16) - 4.7750 * gram + 2.0315 * gram @ gram) @ expected
    torch.testing.assert_close(moved.double(), -expected, rtol=0, atol=1e-5)


def test_jordans_polynomials_bring_singular_values_where_they_should() -> None:
    settings = Muon(polynomials="jordan")
    moved, _ = updated(torch.zeros(64, 64), matrix(64, 64), {}, settings, rate=1.0, step=1)

    values = torch.linalg.svdvals(moved)
    assert values.max() < 1.2
    # Of random matrices some are nearly singular, which it does not bring up.
    assert values.median() > 0.68


def test_cautious_decay_shrinks_what_the_update_makes_smaller() -> None:
    start, gradient = matrix(16, 16), matrix(16, 16).flip(0)
    settings = Muon(weight_decay=0.5)
    plain, _ = updated(start, gradient, {}, Muon(), rate=0.1, step=1)
    all_of_it, _ = updated(start, gradient, {}, settings, rate=0.1, step=1)

    found, _ = updated(start, gradient, {}, replace(settings, cautious=True), rate=0.1, step=1)

    smaller = (plain - start) * start < 0
    assert 0.2 < smaller.float().mean() < 0.8
    torch.testing.assert_close(found, torch.where(smaller, all_of_it, plain))


@pytest.mark.parametrize("settings", RULES_WITH_STATES, ids=repr)
def test_a_stack_of_matrices_is_updated_like_each_alone(settings: Rule) -> None:
    start, gradients = matrix(3, 16, 32), [matrix(3, 16, 32), matrix(3, 16, 32).flip(1)]
    together, state = start, dict[str, torch.Tensor]()
    alone, states = list(start), [dict[str, torch.Tensor]() for _ in start]

    for step, gradient in enumerate(gradients, start=1):
        together, state = updated(together, gradient, state, settings, rate=0.02, step=step)
        for i in range(3):
            alone[i], states[i] = updated(
                alone[i], gradient[i], states[i], settings, rate=0.02, step=step
            )

    torch.testing.assert_close(together, torch.stack(alone))
    for kind, values in state.items():
        # A code may round to the other side.
        tolerance = 1 if values.dtype == torch.int8 else 1e-5
        each = torch.stack([one[kind] for one in states])
        torch.testing.assert_close(values, each, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("settings", RULES_WITH_STATES, ids=repr)
def test_a_rule_takes_the_same_steps_on_mlx_arrays(settings: Rule) -> None:
    mx = pytest.importorskip("mlx.core")
    gradients = [matrix(4, 8), matrix(4, 8).flip(1), matrix(4, 8).flip(0)]
    ours, state = matrix(4, 8), dict[str, torch.Tensor]()
    theirs, their_state = mx.array(ours.numpy()), dict[str, Any]()

    for step, gradient in enumerate(gradients, start=1):
        ours, state = updated(ours, gradient, state, settings, rate=0.02, step=step)
        theirs, their_state = updated(
            theirs, mx.array(gradient.numpy()), their_state, settings, rate=0.02, step=step
        )

    np.testing.assert_allclose(np.array(theirs), ours.numpy(), atol=1e-4)
    assert state.keys() == their_state.keys()
