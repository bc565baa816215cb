"""Texts that a model wrote before a run follow from its seed, and keep what learns near it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.rl.loop import Reinforcement
from nanochat.rl.rehearsal import Rehearsal, divergence
from nanochat.training.frozen import FrozenModel
from tests.rl.runs import log_of, quiet, reinforcement


@pytest.fixture
def run(tmp_path: Path) -> Reinforcement:
    run = reinforcement(tmp_path)
    run.close()
    return run


def rehearsal(run: Reinforcement, seed: int) -> Rehearsal:
    return Rehearsal(run.drawing.engine, run.drawing.tokenizer, run._start, seed)


def test_texts_follow_from_the_seed_and_those_of_a_step_from_the_step(run: Reinforcement) -> None:
    one, same, other = (rehearsal(run, seed) for seed in (0, 0, 1))

    tokens, targets = one.of_step(3, 512)

    assert tokens.shape == targets.shape == (4, 127)
    assert torch.equal(tokens, same.of_step(3, 512)[0])
    assert not torch.equal(tokens, other.of_step(3, 512)[0])
    assert not torch.equal(tokens, one.of_step(4, 512)[0])
    assert one.of_step(0, 1)[0].shape == (1, 127)
    # A target is the next token, or there is none, and then none further on.
    there = targets >= 0
    assert torch.equal(targets[:, :-1][there[:, :-1]], tokens[:, 1:][there[:, :-1]])
    assert there[:, 0].all()
    assert not (there[:, 1:] & ~there[:, :-1]).any()


def test_the_divergence_is_that_of_whole_distributions(run: Reinforcement) -> None:
    tokens, targets = rehearsal(run, 0).of_step(0, 512)
    targets[0, 50:] = -1
    model, start, ops = run.model, run._start, run.model.ops

    @torch.no_grad()
    def found() -> float:
        return float(model(tokens, divergence, targets, tokens, start, ops, has_heads=False))

    def distributions(of: FrozenModel) -> torch.Tensor:
        logits = of.logits(of.hidden(tokens).flatten(0, 1))
        return logits.double().log_softmax(dim=-1)[(targets >= 0).flatten()]

    assert found() == pytest.approx(0, abs=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    ours, theirs = distributions(FrozenModel.of(model)), distributions(start)
    expected = (theirs.exp() * (theirs - ours)).sum(dim=-1).mean()
    assert found() == pytest.approx(float(expected), rel=1e-3)
    assert expected > 0.1


def test_who_rehearses_stays_near_what_it_was(tmp_path: Path) -> None:
    def last(factor: float) -> float:
        out = tmp_path / str(factor)
        policy = {"rehearsal": factor, "rehearsed": 512, "kl": 0.1}
        rates = {name: {"rate": 0.003} for name in ("embedding", "head")}
        reinforcement(out, steps=8, policy=policy, optimizer=rates).run(quiet)
        return float(
            np.mean([line["rehearsal_kl"] for line in log_of(out)[-6:] if "reward" in line])
        )

    assert last(100.0) < 0.7 * last(1e-9)
