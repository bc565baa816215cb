"""Packed documents do not see each other: each has the numbers of a sequence of its own."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nanochat.errors import InputError
from nanochat.init import freeze
from nanochat.model import forward, training_outputs
from nanochat.ops import Ops
from nanochat.proof.tolerances import TOLERANCES, rms_error
from nanochat.rows import require_segments
from tests.parity.backends import backends_under_test, loaded
from tests.parity.cases import CASES
from tests.parity.lockstep import LockstepOps
from tests.parity.random_models import random_weights

AnyOps = Ops[Any, Any, Any]

# The documents of two rows of 14 tokens: a token alone, longer than a chunk of taps, and to the end.
LENGTHS = [[5, 1, 8], [14]]
SEGMENTS = np.array([np.repeat(range(len(lengths)), lengths) for lengths in LENGTHS])

each_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module", params=backends_under_test())
def ops(request: pytest.FixtureRequest) -> Iterator[AnyOps]:
    yield from loaded(request.param)


def tokens(case: str) -> Any:
    return np.random.default_rng(0).integers(0, CASES[case].vocab_size, SEGMENTS.shape)


@each_case
def test_a_packed_document_has_the_logits_that_it_has_alone(ops: AnyOps, case: str) -> None:
    config, ids = CASES[case], tokens(case)
    weights = ops.prepare(freeze(random_weights(config)))
    segments = ops.tokens(require_segments(SEGMENTS))

    packed = ops.numpy(forward(ops.tokens(ids), weights, config, ops, segments=segments))

    for row, lengths in enumerate(LENGTHS):
        ends = np.cumsum(lengths)
        for end, length in zip(ends, lengths, strict=True):
            document = ids[row : row + 1, end - length : end]
            alone = ops.numpy(forward(ops.tokens(document), weights, config, ops))[0]
            found = packed[row, end - length : end]
            if ops.name in ("reference", "numba"):
                np.testing.assert_array_equal(found, alone)
            else:
                # Sums in another order can turn a rounding.
                assert rms_error(found, alone) < TOLERANCES["logits"].limit


@each_case
@pytest.mark.parametrize("name", [name for name in backends_under_test() if name != "reference"])
def test_the_operations_agree_on_packed_documents(name: str, case: str) -> None:
    (other,) = loaded(name)
    lockstep: Any = LockstepOps(other)
    config = CASES[case]
    weights = lockstep.prepare(freeze(random_weights(config)))
    ids = tokens(case)
    later = [lockstep.tokens(np.roll(ids, -n, axis=1)) for n in range(1, 1 + len(weights.joins))]
    segments = lockstep.tokens(require_segments(SEGMENTS))

    training_outputs(
        lockstep.tokens(ids), weights, config, lockstep, segments=segments, later=later
    )

    lockstep.check()


def test_documents_that_go_backwards_are_refused() -> None:
    with pytest.raises(InputError, match="segment 1 follows segment 2 in row 1 at token 3"):
        require_segments(np.array([[0, 0, 0, 0], [1, 2, 2, 1]]))
