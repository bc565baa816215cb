"""Whole models on every backend: equal to the reference, to themselves in pieces, and causal."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.config import ModelConfig
from nanochat.init import freeze
from nanochat.model import forward, slots, training_outputs
from nanochat.ops import Ops
from nanochat.proof.tolerances import TOLERANCES, rms_error
from nanochat.weights import Stored, Weights
from tests.parity.cases import CASES
from tests.parity.lockstep import LockstepOps
from tests.parity.random_models import random_weights

AnyOps = Ops[Any, Any, Any]

STATEFUL = [
    "grouped_query_attention",
    "multi_query_attention",
    "rope_scale",
    "delta_by_ratio",
    "delta_without_taps",
    "experts",
    "loop_with_delta",
    "adaptive_exit",
    "adaptive_exit_of_all",
    "4_streams_dynamic_lite",
]
MIXERS = ["grouped_query_attention", "delta_by_ratio", "delta_without_taps", "adaptive_exit"]
TRAINED = [
    "grouped_query_attention",
    "shared_expert",
    "loop_with_streams",
    "adaptive_exit",
    "ahead",
]

every_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())


def cases(names: list[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("config", [CASES[name] for name in names], ids=names)


def token_ids(config: ModelConfig, batch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, config.vocab_size, (batch, length))


def packed_weights(config: ModelConfig) -> Weights[Stored]:
    return freeze(random_weights(config))


def continued(
    ops: AnyOps, weights: Any, config: ModelConfig, pieces: list[NDArray[np.int64]]
) -> list[NDArray[np.float32]]:
    """Logits of consecutive pieces of one batch."""
    state = ops.new_state(
        slots(config), batch=len(pieces[0]), capacity=sum(p.shape[1] for p in pieces)
    )
    return [ops.numpy(forward(ops.tokens(p), weights, config, ops, state)) for p in pieces]


@every_case
def test_every_operation_agrees_with_the_reference(other: AnyOps, config: ModelConfig) -> None:
    lockstep = LockstepOps(other)
    weights = lockstep.prepare(packed_weights(config))

    forward(lockstep.tokens(token_ids(config, 2, 9)), weights, config, lockstep)

    lockstep.check()


@every_case
def test_numbers_drift_little_from_one_rounding_to_the_next(
    other: AnyOps, config: ModelConfig
) -> None:
    lockstep = LockstepOps(other, equalize="roundings")
    weights = lockstep.prepare(packed_weights(config))

    logits = forward(lockstep.tokens(token_ids(config, 2, 9)), weights, config, lockstep)

    lockstep.compare("project", logits)
    lockstep.check()


@every_case
def test_logits_of_the_model_left_alone_agree(other: AnyOps, config: ModelConfig) -> None:
    weights = packed_weights(config)
    ids = token_ids(config, 2, 9)
    reference = ReferenceOps()

    logits = forward(other.tokens(ids), other.prepare(weights), config, other)

    expected = forward(reference.tokens(ids), reference.prepare(weights), config, reference)
    assert rms_error(other.numpy(logits), expected) <= TOLERANCES["logits"].limit


@cases(TRAINED)
def test_training_outputs_agree_with_latent_weights(other: AnyOps, config: ModelConfig) -> None:
    lockstep = LockstepOps(other)
    weights = lockstep.prepare(random_weights(config))

    outputs = training_outputs(lockstep.tokens(token_ids(config, 2, 9)), weights, config, lockstep)

    lockstep.check()
    assert len(outputs.steps) == config.loop_count
    assert len(outputs.ahead) == config.num_ahead


@cases(STATEFUL)
def test_operations_agree_with_a_state(other: AnyOps, config: ModelConfig) -> None:
    lockstep = LockstepOps(other)
    weights = lockstep.prepare(packed_weights(config))
    pieces = np.split(token_ids(config, 2, 8), [5, 6, 7], axis=1)

    continued(lockstep, weights, config, pieces)

    lockstep.check()


@cases(STATEFUL)
def test_a_prefix_and_single_steps_equal_the_whole(ops: AnyOps, config: ModelConfig) -> None:
    weights = ops.prepare(packed_weights(config))
    ids = token_ids(config, 2, 8)

    steps = continued(ops, weights, config, np.split(ids, [5, 6, 7], axis=1))

    whole = ops.numpy(forward(ops.tokens(ids), weights, config, ops))
    assert rms_error(np.concatenate(steps, axis=1), whole) <= TOLERANCES["logits"].limit


@cases(STATEFUL)
def test_a_batch_of_different_lengths_agrees_with_the_reference(
    other: AnyOps, config: ModelConfig
) -> None:
    lockstep = LockstepOps(other)
    weights = lockstep.prepare(packed_weights(config))
    ids = token_ids(config, 3, 12)
    states = [lockstep.new_state(slots(config), batch=1, capacity=16) for _ in range(3)]
    for row, length in enumerate([5, 1, 8]):
        prefix = lockstep.tokens(ids[row : row + 1, :length])
        forward(prefix, weights, config, lockstep, states[row])

    whole = lockstep.stack(states)
    forward(lockstep.tokens(ids[:, 8:9]), weights, config, lockstep, whole)
    forward(lockstep.tokens(ids[:, 9:12]), weights, config, lockstep, whole)

    lockstep.check()


@cases(STATEFUL)
def test_a_batch_of_different_lengths_equals_its_rows(ops: AnyOps, config: ModelConfig) -> None:
    weights = ops.prepare(packed_weights(config))
    ids = token_ids(config, 3, 9)
    states, alone = [], []
    for row, length in enumerate([5, 1, 8]):
        prefix, last = ids[row : row + 1, :length], ids[row : row + 1, 8:]
        alone.append(continued(ops, weights, config, [prefix, last])[1])
        states.append(ops.new_state(slots(config), batch=1, capacity=9))
        forward(ops.tokens(prefix), weights, config, ops, states[row])

    together = forward(ops.tokens(ids[:, 8:]), weights, config, ops, ops.stack(states))

    error = rms_error(ops.numpy(together), np.concatenate(alone))
    assert error <= TOLERANCES["logits"].limit


@cases(MIXERS)
def test_a_token_changes_no_logits_before_it(ops: AnyOps, config: ModelConfig) -> None:
    weights = ops.prepare(packed_weights(config))
    ids = token_ids(config, 2, 70)
    changed = ids.copy()
    changed[:, 40] = (ids[:, 40] + 1) % config.vocab_size

    before = ops.numpy(forward(ops.tokens(ids), weights, config, ops))
    after = ops.numpy(forward(ops.tokens(changed), weights, config, ops))

    assert rms_error(after[:, :40], before[:, :40]) <= 1e-6
    assert rms_error(after[:, 40:], before[:, 40:]) > 1e-2


@cases(["grouped_query_attention"])
def test_only_the_last_logits_equal_the_last_of_all(ops: AnyOps, config: ModelConfig) -> None:
    weights = ops.prepare(packed_weights(config))
    ids = ops.tokens(token_ids(config, 2, 9))

    last = ops.numpy(forward(ids, weights, config, ops, only_last=True))

    whole = ops.numpy(forward(ids, weights, config, ops))
    assert rms_error(last, whole[:, -1:]) <= TOLERANCES["project"].limit
