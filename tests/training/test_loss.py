"""The training loss, term by term."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from nanochat.backends.torch.linears import FloatLinear, Leaf
from nanochat.backends.torch.ops import TorchOps
from nanochat.config import ModelConfig
from nanochat.init import init
from nanochat.model import TrainingOutputs
from nanochat.training.loss import terms
from nanochat.training.module import LanguageModel
from nanochat.training.objectives.exits import exit_distribution
from nanochat.training.objectives.settings import Objective
from nanochat.weights import named_leaves
from tests.training.runs import MODEL

OPS = TorchOps("cpu")
TARGETS = torch.arange(10).reshape(2, 5) % 8


def outputs(**changes: tuple[torch.Tensor, ...]) -> TrainingOutputs[torch.Tensor, Leaf]:
    """Hidden states that are logits, because the table is the identity."""
    parts: dict[str, Any] = {
        "steps": (torch.zeros(2, 5, 8),),
        "survival": (),
        "ahead": (),
        "routing": (),
        "table": torch.eye(8),
    }
    return TrainingOutputs(**{**parts, **changes})


def losses(
    given: TrainingOutputs[torch.Tensor, Leaf], settings: Objective, targets: torch.Tensor = TARGETS
) -> tuple[float, float]:
    """The objective and the loss, which is the cross-entropy."""
    found = terms(given, targets, OPS, settings, top_k=1)
    return float(found["objective"]), float(found["loss"])


def test_a_plain_model_minimises_the_cross_entropy_alone() -> None:
    total, loss = losses(outputs(), Objective())

    assert total == loss == pytest.approx(math.log(8))


def test_exit_probabilities_sum_to_one() -> None:
    survival = (torch.full((1, 3, 1), 0.7), torch.full((1, 3, 1), 0.2))

    exits = exit_distribution(survival)

    torch.testing.assert_close(exits[:, 0, 0], torch.tensor([0.3, 0.5, 0.2]))


def test_a_loop_weighs_the_loss_of_each_step_by_its_exit_probability() -> None:
    good = torch.nn.functional.one_hot(TARGETS, 8) * 100.0
    looped = outputs(steps=(torch.zeros(2, 5, 8), good), survival=(torch.full((2, 5, 1), 0.25),))

    total, loss = losses(looped, Objective(exit_entropy=0.0))

    assert total == pytest.approx(0.75 * math.log(8), rel=1e-5)
    assert loss == pytest.approx(0.0, abs=1e-5)


def test_the_entropy_term_rewards_undecided_exits() -> None:
    even = outputs(steps=(torch.zeros(2, 5, 8),) * 2, survival=(torch.full((2, 5, 1), 0.5),))

    total, _ = losses(even, Objective(exit_entropy=1.0))

    assert total == pytest.approx(math.log(8) - math.log(2), rel=1e-5)


def test_extra_heads_predict_the_tokens_after_the_next() -> None:
    later = torch.nn.functional.one_hot(TARGETS.roll(-1, dims=1), 8) * 100.0

    total, loss = losses(outputs(ahead=(later,)), Objective())

    assert total - loss == pytest.approx(0.0, abs=1e-5)


def test_even_routing_has_a_balance_of_one() -> None:
    logits = torch.eye(4).repeat(2, 1)[None] * 1e-3
    settings = Objective(balance=1.0, router_z=0.0)

    total, loss = losses(outputs(routing=(logits,)), settings)

    assert total - loss == pytest.approx(1.0, rel=1e-3)


def test_routing_everything_to_one_expert_costs_more() -> None:
    logits = torch.tensor([9.0, 0.0, 0.0, 0.0]).expand(1, 8, 4)
    settings = Objective(balance=1.0, router_z=0.0)

    total, loss = losses(outputs(routing=(logits,)), settings)

    assert total - loss > 3.9


@pytest.mark.parametrize("top_k", [1, 2])
def test_routers_are_balanced_by_their_formulas(top_k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    routing = tuple(torch.randn(2, 5, 6, generator=generator) for _ in range(2))

    found = terms(outputs(routing=routing), TARGETS, OPS, Objective(), top_k=top_k)

    balances, squares = [], []
    for logits in routing:
        rows = logits.double().numpy().reshape(10, 6)
        powers, shares = np.exp(rows), np.zeros(6)
        for row in rows:
            shares[np.argsort(row)[-top_k:]] += 1 / (10 * top_k)
        means = (powers / powers.sum(axis=1, keepdims=True)).mean(axis=0)
        balances.append(6 * (shares * means).sum())
        squares.append((np.log(powers.sum(axis=1)) ** 2).mean())
    assert float(found["balance"]) == pytest.approx(np.mean(balances), rel=1e-5)
    assert float(found["router_z"]) == pytest.approx(np.mean(squares), rel=1e-5)


def test_the_loss_is_that_of_the_next_token_whatever_is_minimised() -> None:
    given = outputs(ahead=(torch.zeros(2, 5, 8),), routing=(torch.eye(4).repeat(2, 1)[None],))

    total, loss = losses(given, Objective())

    assert loss == pytest.approx(math.log(8))
    assert total > 1.24 * loss


def test_every_term_has_a_name() -> None:
    given = outputs(
        steps=(torch.zeros(2, 5, 8),) * 2,
        survival=(torch.full((2, 5, 1), 0.5),),
        ahead=(torch.zeros(2, 5, 8),),
        routing=(torch.zeros(2, 5, 4),),
    )

    found = terms(given, TARGETS, OPS, Objective(), top_k=1)

    expected = {
        "loss": math.log(8),
        "expected_cross_entropy": math.log(8),
        "exit_entropy": math.log(2),
        # Of four of five tokens.
        "ahead": 0.8 * math.log(8),
        "balance": 1.0,
        "router_z": math.log(4) ** 2,
    }
    total = math.log(8) - 0.05 * math.log(2) + 0.3 * expected["ahead"] + 0.01
    total += 0.001 * expected["router_z"]
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {"objective": total, **expected}, rel=1e-5
    )


def random_outputs() -> TrainingOutputs[torch.Tensor, Leaf]:
    generator = torch.Generator().manual_seed(0)
    step, ahead = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    return outputs(steps=(step,), ahead=(ahead,))


def test_a_mask_over_its_sum_trains_on_a_part_of_the_text() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0]])
    given = random_outputs()

    masked = terms(given, TARGETS, OPS, Objective(), top_k=1, weights=mask / mask.sum())
    hidden = terms(given, TARGETS.where(mask == 1, -1), OPS, Objective(), top_k=1)

    logits = given.steps[0][mask == 1]
    expected = torch.nn.functional.cross_entropy(logits, TARGETS[mask == 1])
    torch.testing.assert_close(masked["loss"], expected)
    torch.testing.assert_close(hidden, masked)


def test_advantages_as_weights_give_the_policy_gradient() -> None:
    logits = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    advantages = torch.tensor([[1.0], [-1.0]]).expand(2, 5)

    found = terms(
        outputs(steps=(logits,)), TARGETS, OPS, Objective(), top_k=1, weights=advantages / 10
    )
    (gradient,) = torch.autograd.grad(found["objective"], logits)

    probabilities = logits.detach().softmax(dim=-1)
    chosen = torch.nn.functional.one_hot(TARGETS, 8)
    torch.testing.assert_close(gradient, (probabilities - chosen) * advantages[..., None] / 10)


def test_a_masked_token_whose_loss_is_infinite_costs_nothing() -> None:
    logits = torch.zeros(2, 5, 8)
    logits[0, 0, 1:] = float("inf")
    weights = torch.ones(2, 5) / 9
    weights[0, 0] = 0

    found = terms(outputs(steps=(logits,)), TARGETS, OPS, Objective(), top_k=1, weights=weights)

    assert float(found["objective"]) == pytest.approx(math.log(8))


def test_a_batch_without_targets_costs_nothing() -> None:
    assert losses(outputs(), Objective(), torch.full((2, 5), -1)) == (0, 0)


def test_terms_of_factor_zero_leave_exactly_the_plain_loss() -> None:
    nothing = Objective(exit_entropy=0, ahead=0, balance=0, router_z=0)
    # Of terms that would not be finite.
    far = torch.full((2, 5, 8), float("inf"))
    given = outputs(steps=random_outputs().steps, ahead=(far,), routing=(far,))

    found = terms(given, TARGETS, OPS, nothing, top_k=1)

    assert torch.equal(found["objective"], found["loss"])
    # That would be another pass through the head.
    assert "ahead" not in found


SMALL = {"vocab_size": 16, **MODEL}


def unquantised(**changes: object) -> LanguageModel:
    config = ModelConfig(**{**SMALL, **changes})  # type: ignore[arg-type]
    weights = init(config, np.random.default_rng(0))
    model = LanguageModel(config, weights, TorchOps("cpu", torch.float64), "float").double()
    # Numbers that start at zero would hide the paths behind them.
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_streams": 1},
        {"coefficients": "dynamic"},
        {"mixer": "sinkhorn", "num_streams": 2},
        {"layer_pattern": ("delta", "attention")},
        {"num_experts": 4, "expert_width": 128},
        {"loop_count": 2},
        {"num_ahead": 1},
        {"num_ahead": 2, "ahead_kind": "sequential"},
        {"attention_gate": True, "sub_norm": True, "activation": "relu2"},
    ],
    ids=str,
)
def test_gradients_agree_with_finite_differences(changes: dict[str, object]) -> None:
    model = unquantised(**changes)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(16, (2, 9), generator=generator)
    parameters = [p.data for p in model.parameters()]
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss() -> torch.Tensor:
        def total(outputs: TrainingOutputs[torch.Tensor, Leaf]) -> torch.Tensor:
            return terms(outputs, tokens[:, 1:], model.ops, Objective(), top_k=2)["objective"]

        found: torch.Tensor = model(tokens[:, :-1], total)
        return found

    gradients = torch.autograd.grad(loss(), list(model.parameters()), allow_unused=True)
    slope = sum(
        float((g * d).sum()) for g, d in zip(gradients, directions, strict=True) if g is not None
    )
    step = 1e-5
    with torch.no_grad():
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(direction, alpha=step)
        ahead = float(loss())
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.sub_(direction, alpha=2 * step)
        behind = float(loss())

    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-8)


def test_rounding_is_straight_through() -> None:
    ops = TorchOps("cpu")
    config = ModelConfig(**SMALL, num_streams=1)  # type: ignore[arg-type]
    model = LanguageModel(config, init(config, np.random.default_rng(0)), ops)
    linear = dict(named_leaves(model.tree()))["layers.0.network.down"]
    assert isinstance(linear, FloatLinear)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0), requires_grad=True)
    upstream = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))

    (y,) = ops.project(x, linear)
    y.backward(upstream)

    torch.testing.assert_close(x.grad, upstream @ linear.values, rtol=1e-5, atol=1e-5)
