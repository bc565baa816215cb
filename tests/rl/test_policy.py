"""The loss of a policy has the gradients of its formulas, written here over whole logits."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.backends.torch.ops import TorchOps
from nanochat.model import TrainingOutputs
from nanochat.rl.policy import Given, terms
from nanochat.rl.recipe import Policy

B, T, C, V = 3, 5, 8, 11
TEMPERATURE = 0.7
OPS = TorchOps("cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(**known: Tensor) -> tuple[Tensor, Tensor, Tensor, Given]:
    x = torch.randn(B, T, C, requires_grad=True)
    table = torch.randn(V, C, requires_grad=True)
    targets = torch.randint(V, (B, T))
    targets[0, :3] = targets[2, 4:] = -1
    there = targets >= 0
    given = Given(
        advantages=torch.randn(B, T).where(there, 0.0),
        weights=torch.rand(B, T).where(there, 0.0),
        drawn=torch.full((B, T), -2.0).where(there, 0.0),
        **known,
    )
    return x, table, targets, given


def outputs(x: Tensor, table: Tensor) -> TrainingOutputs[Any, Any]:
    return TrainingOutputs(steps=(x,), survival=(), ahead=(), routing=(), table=table)


def logprobs_of(x: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    logits = (x @ table.T / TEMPERATURE).log_softmax(dim=-1)
    return logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0].where(targets >= 0, 0.0)


def found_of(
    x: Tensor, table: Tensor, targets: Tensor, given: Given, policy: Policy, **more: Any
) -> dict[str, Tensor]:
    return terms(outputs(x, table), targets, given, OPS, policy, temperature=TEMPERATURE, **more)


def assert_same_gradients(found: Tensor, expected: Tensor, *leaves: Tensor) -> None:
    ours = torch.autograd.grad(found, leaves)
    theirs = torch.autograd.grad(expected, leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_one_update_has_the_plain_policy_gradient() -> None:
    x, table, targets, given = made()
    found = found_of(x, table, targets, given, Policy())

    expected = -(given.weights * given.advantages * logprobs_of(x, table, targets)).sum()

    assert_same_gradients(found["objective"], expected, x, table)
    torch.testing.assert_close(found["logprobs"], logprobs_of(x, table, targets).detach())
    assert found["clipped"] == 0


def test_rows_that_are_read_alone_change_nothing() -> None:
    x, table, targets, given = made()
    rows = (targets.flatten() >= 0).nonzero()[:, 0]

    whole = found_of(x, table, targets, given, Policy())
    part = found_of(x, table, targets, given, Policy(), rows=rows)

    assert_same_gradients(part["objective"], whole["objective"], x, table)
    torch.testing.assert_close(part["logprobs"], whole["logprobs"])
    torch.testing.assert_close(part["entropy"], whole["entropy"])


def test_what_has_moved_too_far_is_learnt_from_no_more() -> None:
    x, table, targets, given = made()
    logprobs = logprobs_of(x, table, targets)
    given = replace(given, before=(logprobs + torch.randn(B, T)).detach())
    policy = Policy(clip_low=0.2, clip_high=0.3)

    found = found_of(x, table, targets, given, policy)

    assert given.before is not None
    ratio, worth = (logprobs - given.before).exp(), given.advantages
    gain = torch.minimum(ratio * worth, ratio.clamp(0.8, 1.3) * worth)
    assert_same_gradients(found["objective"], -(given.weights * gain).sum(), x, table)
    too_far = ((ratio > 1.3) & (worth > 0)) | ((ratio < 0.8) & (worth < 0))
    assert found["clipped"] == (too_far & (targets >= 0)).sum() > 0


def test_the_divergence_is_k3_from_the_reference() -> None:
    x, table, targets, given = made()
    reference = torch.full((B, T), -1.5).where(targets >= 0, 0.0)
    given = replace(given, reference=reference, advantages=torch.zeros(B, T))

    found = found_of(x, table, targets, given, Policy(kl=0.5))

    change = (reference - logprobs_of(x, table, targets)).where(targets >= 0, 0.0)
    k3 = change.exp() - change - 1
    assert_same_gradients(found["objective"], 0.5 * (given.weights * k3).sum(), x, table)
    torch.testing.assert_close(found["kl"], k3.detach().sum())


def test_the_entropy_is_of_the_distribution_that_was_drawn_from() -> None:
    x, table, targets, given = made()
    given = replace(given, advantages=torch.zeros(B, T))

    found = found_of(x, table, targets, given, Policy(entropy=0.1))

    logits = (x @ table.T / TEMPERATURE).log_softmax(dim=-1)
    spread = -(logits.exp() * logits).sum(dim=-1).where(targets >= 0, 0.0)
    assert_same_gradients(found["objective"], -0.1 * (given.weights * spread).sum(), x, table)
    torch.testing.assert_close(found["entropy"], spread.detach().sum())


def test_a_token_that_another_engine_drew_weighs_by_its_ratio_to_the_cap() -> None:
    x, table, targets, given = made()
    logprobs = logprobs_of(x, table, targets)
    given = replace(given, drawn=(logprobs + torch.randn(B, T)).detach())

    found = found_of(x, table, targets, given, Policy(ratio_cap=2.0))

    factor = (logprobs - given.drawn).detach().exp().clamp(max=2.0)
    assert (factor == 2).any()
    expected = -(given.weights * given.advantages * factor * logprobs).sum()
    assert_same_gradients(found["objective"], expected, x, table)
    distance = (logprobs - given.drawn).detach().where(targets >= 0, 0.0).abs()
    torch.testing.assert_close(found["mismatch"], distance.sum())
    torch.testing.assert_close(found["mismatch_max"], distance.max())


def test_with_a_teacher_a_token_is_worth_how_much_likelier_it_is_there() -> None:
    x, table, targets, given = made()
    teacher = torch.full((B, T), -1.0).where(targets >= 0, 0.0)
    given = replace(given, teacher=teacher)

    found = found_of(x, table, targets, given, Policy())

    logprobs = logprobs_of(x, table, targets)
    worth = (teacher - logprobs).detach()
    assert_same_gradients(found["objective"], -(given.weights * worth * logprobs).sum(), x, table)
