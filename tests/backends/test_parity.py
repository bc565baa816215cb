"""Whole models on every backend: equal to the reference, to themselves in pieces, and causal."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.config import ModelConfig
from nanochat.init import freeze
from nanochat.model import forward, training_outputs
from nanochat.ops import Ops, Storage
from nanochat.proof.tolerances import TOLERANCES, rms_error
from nanochat.slots import slots
from nanochat.weights import Stored, Weights
from tests.parity.cases import CASES, KEPT
from tests.parity.lockstep import LockstepOps
from tests.parity.random_models import random_weights
from tests.parity.rows import continue_rows, new_rows, run_step, state_of_lengths

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
    "sequential_heads",
]

every_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())


def cases(names: Sequence[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("config", [CASES[name] for name in names], ids=names)


def token_ids(config: ModelConfig, batch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, config.vocab_size, (batch, length))


def packed_weights(config: ModelConfig) -> Weights[Stored]:
    return freeze(random_weights(config))


def continued(
    ops: AnyOps,
    weights: Any,
    config: ModelConfig,
    pieces: list[NDArray[np.int64]],
    *,
    storage: Storage = "float32",
) -> list[NDArray[np.float32]]:
    """Logits of consecutive pieces of one batch."""
    capacity = sum(piece.shape[1] for piece in pieces)
    state = state_of_lengths(ops, slots(config, storage=storage), [0] * len(pieces[0]), capacity)
    return [continue_rows(ops, weights, config, state, piece) for piece in pieces]


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

    ids = token_ids(config, 2, 9)
    tokens = lockstep.tokens(ids)
    later = [lockstep.tokens(np.roll(ids, -n, axis=1)) for n, _ in enumerate(weights.joins, 1)]
    outputs = training_outputs(tokens, weights, config, lockstep, later=later)
    for x in (*outputs.steps, *outputs.ahead):
        lockstep.cross_entropy(x, outputs.table, tokens)

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


@pytest.mark.parametrize("equalize", ["operations", "roundings"])
@pytest.mark.parametrize("storage", get_args(Storage))
@cases(KEPT)
def test_operations_agree_on_what_is_kept_in_every_form(
    other: AnyOps, config: ModelConfig, storage: Storage, equalize: Any
) -> None:
    lockstep = LockstepOps(other, equalize=equalize)
    weights = lockstep.prepare(packed_weights(config))
    pieces = np.split(token_ids(config, 2, 8), [5, 6, 7], axis=1)

    continued(lockstep, weights, config, pieces, storage=storage)

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
    state = new_rows(lockstep, config, 3, 16)
    for row, length in enumerate([5, 1, 8]):
        run_step(lockstep, weights, config, state, [row], [ids[row, :length]])

    continue_rows(lockstep, weights, config, state, ids[:, 8:9])
    continue_rows(lockstep, weights, config, state, ids[:, 9:12])

    lockstep.check()


@cases(STATEFUL)
def test_rows_that_get_unequally_many_tokens_agree_with_the_reference(
    other: AnyOps, config: ModelConfig
) -> None:
    lockstep = LockstepOps(other)
    weights = lockstep.prepare(packed_weights(config))
    ids = token_ids(config, 3, 12)
    state = new_rows(lockstep, config, 3, 16)

    for rows, counts in [([0, 1, 2], [4, 1, 6]), ([2, 0], [1, 3]), ([1, 0, 2], [1, 2, 1])]:
        tokens = [ids[row, :count] for row, count in zip(rows, counts, strict=True)]
        run_step(lockstep, weights, config, state, rows, tokens)

    lockstep.check()


@cases(STATEFUL)
def test_a_batch_of_different_lengths_equals_its_rows(ops: AnyOps, config: ModelConfig) -> None:
    weights = ops.prepare(packed_weights(config))
    ids = token_ids(config, 3, 9)
    state, alone = new_rows(ops, config, 3, 9), []
    for row, length in enumerate([5, 1, 8]):
        prefix, last = ids[row : row + 1, :length], ids[row : row + 1, 8:]
        alone.append(continued(ops, weights, config, [prefix, last])[1])
        run_step(ops, weights, config, state, [row], [prefix[0]])

    together = continue_rows(ops, weights, config, state, ids[:, 8:])

    error = rms_error(together, np.concatenate(alone))
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


@cases(["grouped_query_attention"])
def test_only_the_last_logits_of_rows_equal_the_last_of_all(
    ops: AnyOps, config: ModelConfig
) -> None:
    weights = ops.prepare(packed_weights(config))
    tokens = [ids[:count] for ids, count in zip(token_ids(config, 3, 5), (2, 5, 1), strict=True)]

    last, whole = (
        run_step(
            ops, weights, config, new_rows(ops, config, 3, 5), range(3), tokens, only_last=only
        )
        for only in (True, False)
    )

    assert rms_error(last, whole[[1, 6, 7]]) <= TOLERANCES["project"].limit
