"""A row has the same bits alone, in any batch, in any pieces, forked, and after others left."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.generation.engine import Engine
from nanochat.init import freeze
from nanochat.ops import Ops, Storage
from nanochat.rows import PAGE
from nanochat.weights import Stored, Weights
from tests.parity.backends import exact_backends, loaded
from tests.parity.cases import CASES
from tests.parity.random_models import random_weights

AnyOps = Ops[Any, Any, Any]
AnyEngine = Engine[Any, Any, Any]
Values = NDArray[np.float32]

each_storage = pytest.mark.parametrize("storage", ["float32", "int8", "int4"])


@pytest.fixture(scope="module", params=exact_backends())
def ops(request: pytest.FixtureRequest) -> Iterator[AnyOps]:
    yield from loaded(request.param)


@cache
def packed_weights(case: str) -> Weights[Stored]:
    return freeze(random_weights(CASES[case]))


def engine(ops: AnyOps, case: str, storage: Storage) -> AnyEngine:
    return Engine(CASES[case], ops.prepare(packed_weights(case)), ops, kv_cache=storage)


class Readers:
    """Rows of one state that read sequences, and what each must give: what it gives to a row that is alone."""

    def __init__(self, runner: AnyEngine, lengths: list[int], *, rows: int) -> None:
        generator = np.random.default_rng(0)
        self.runner = runner
        self.state = runner.new_state(rows=rows, capacity=max(lengths))
        self.ids = [
            generator.integers(0, runner.config.vocab_size, length).tolist() for length in lengths
        ]
        self.expected = [self._alone(ids) for ids in self.ids]
        # Which sequence a row reads.
        self.sequences: dict[int, int] = {}

    def _alone(self, ids: list[int]) -> Values:
        state = self.runner.new_state(rows=1, capacity=len(ids))
        return self.runner.step(state, [state.admit()], [ids], every=True)

    def admit(self, sequence: int, snapshot: Any = None) -> int:
        row: int = self.state.admit(snapshot)
        self.sequences[row] = sequence
        return row

    def fork(self, row: int) -> int:
        new: int = self.state.fork(row)
        self.sequences[new] = self.sequences[row]
        return new

    def read(self, counts: dict[int, int]) -> None:
        """Let rows read so many tokens each, and compare their logits."""
        tokens, expected = [], []
        for row, count in counts.items():
            start, sequence = self.state.length(row), self.sequences[row]
            tokens.append(self.ids[sequence][start : start + count])
            assert len(tokens[-1]) == count
            expected.append(self.expected[sequence][start : start + count])
        # Steps of one token may be run in a way of their own, which gives no more than the last logits.
        every = max(counts.values()) > 1
        found = self.runner.step(self.state, list(counts), tokens, every=every)
        np.testing.assert_array_equal(found, np.concatenate(expected))


@each_storage
@pytest.mark.parametrize("case", CASES)
def test_a_row_has_the_same_bits_alone_and_in_any_company(
    ops: AnyOps, case: str, storage: Storage
) -> None:
    readers = Readers(engine(ops, case, storage), [12, 8, 6], rows=4)
    a, b = readers.admit(0), readers.admit(1)
    readers.read({a: 3, b: 1})
    c = readers.admit(2)
    readers.read({c: 2, a: 1})
    d = readers.fork(a)

    readers.read({a: 1, b: 1, c: 1, d: 1})
    readers.read({d: 4, b: 2})
    readers.state.release(a)
    readers.read({b: 1, c: 1})
    e = readers.admit(0)
    readers.read({e: 6, d: 1, c: 1})
    readers.read({d: 1, e: 1, b: 1})
    readers.read({e: 1})

    assert e == a


@each_storage
@pytest.mark.parametrize("case", ["grouped_query_attention", "delta_by_ratio", "loop_with_delta"])
def test_a_row_of_several_pages_has_the_same_bits_in_any_company(
    ops: AnyOps, case: str, storage: Storage
) -> None:
    readers = Readers(engine(ops, case, storage), [PAGE + 9, PAGE + 4, 6], rows=6)
    a, b, c = (readers.admit(sequence) for sequence in range(3))

    readers.read({b: PAGE - 1, c: 1})
    readers.read({a: PAGE, b: 1, c: 1})
    d, e = readers.fork(a), readers.fork(b)
    readers.read({a: 1, b: 1, c: 1, d: 1, e: 1})
    f = readers.fork(a)
    readers.read({f: 3, a: 1, c: 1, b: 2})
    readers.state.release(b)
    readers.read({e: 1, f: 1, a: 1, d: 1, c: 1})


@each_storage
def test_a_snapshot_is_continued_with_the_bits_of_its_row(ops: AnyOps, storage: Storage) -> None:
    # One row more than are used, since the snapshot has a page of its own.
    readers = Readers(engine(ops, "delta_by_ratio", storage), [12, 5], rows=4)
    a, b = readers.admit(0), readers.admit(1)
    readers.read({a: 5, b: 2})
    snapshot = readers.state.snapshot(a)
    readers.read({a: 4, b: 1})
    readers.state.release(a)
    readers.read({b: 1})

    first = readers.admit(0, snapshot)
    readers.read({first: 1, b: 1})
    second = readers.admit(0, snapshot)
    readers.state.drop(snapshot)
    readers.read({second: 3, first: 2})
    readers.read({first: 1, second: 1})
