"""Rows that come, go, fork and read at random: each has the bits that it has alone, and no page is lost."""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.errors import ContextLengthError, MemoryShortageError
from nanochat.generation.engine import Engine
from nanochat.init import freeze
from nanochat.ops import Ops, Storage
from nanochat.rows import num_pages
from tests.parity.backends import backends_under_test, loaded
from tests.parity.random_models import random_weights

Values = NDArray[np.float32]

SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "width": 32,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 16,
    "ffn_width": 32,
    "context_length": 512,
    "num_streams": 1,
    "weight_block": "row",
    "activation_block": "token",
}
DELTA: dict[str, Any] = {"delta_heads": 1, "delta_key_dim": 8, "delta_value_dim": 16}
MODELS: dict[str, tuple[ModelConfig, Storage]] = {
    "attention": (ModelConfig(**SMALL, num_layers=1), "int8"),
    "attention in blocks": (ModelConfig(**SMALL | {"head_dim": 40}, num_layers=1), "int4"),
    "loop with delta": (
        ModelConfig(
            **SMALL, **DELTA, num_layers=2, layer_pattern=("delta", "attention"), loop_count=2
        ),
        "float32",
    ),
    "delta and experts": (
        ModelConfig(
            **SMALL | {"ffn_width": 0, "num_streams": 2},
            **DELTA,
            num_layers=2,
            layer_pattern=("attention", "delta"),
            num_experts=3,
            expert_width=32,
        ),
        "float16",
    ),
}
# Six rows that are full would take 18 pages.
ROWS, CAPACITY, PAGES = 6, 300, 8


class Reader:
    """A row that reads: its tokens, and the logits that it got at some of them."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens
        self.logits: dict[int, Values] = {}

    def got(self, tokens: list[int], logits: Values) -> None:
        """Note tokens and the logits after the last of them."""
        self.tokens = self.tokens + tokens
        first = len(self.tokens) - len(logits)
        self.logits |= {first + i: each for i, each in enumerate(logits)}


class RandomRows(RuleBasedStateMachine):
    """Rows of one state, as the rules have it."""

    runner: ClassVar[Engine[Any, Any, Any]]
    steps: ClassVar[int] = 0
    refused: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(0)
        self.state = self.runner.new_state(rows=ROWS, capacity=CAPACITY, pages=PAGES)
        self.readers: dict[int, Reader] = {}
        self.gone: list[Reader] = []
        self.snapshots: list[tuple[Any, list[int]]] = []

    def some_row(self, number: int) -> int:
        return sorted(self.readers)[number % len(self.readers)]

    def begin(self, row: int, tokens: list[int]) -> None:
        assert row not in self.readers
        self.readers[row] = Reader(tokens)

    @precondition(lambda self: self.state.free_rows)
    @rule()
    def admit(self) -> None:
        self.begin(self.state.admit(), [])

    @precondition(lambda self: self.readers)
    @rule(number=st.integers(0, ROWS - 1))
    def release(self, number: int) -> None:
        row = self.some_row(number)
        self.state.release(row)
        self.gone.append(self.readers.pop(row))

    @precondition(lambda self: self.readers and self.state.free_rows)
    @rule(number=st.integers(0, ROWS - 1))
    def fork(self, number: int) -> None:
        row = self.some_row(number)
        self.begin(self.state.fork(row), self.readers[row].tokens)

    @precondition(lambda self: self.readers and len(self.snapshots) < 2)
    @rule(number=st.integers(0, ROWS - 1))
    def snapshot(self, number: int) -> None:
        row = self.some_row(number)
        self.snapshots.append((self.state.snapshot(row), self.readers[row].tokens))

    @precondition(lambda self: self.snapshots and self.state.free_rows)
    @rule(drop=st.booleans())
    def restore(self, drop: bool) -> None:
        snapshot, tokens = self.snapshots[0]
        self.begin(self.state.admit(snapshot), tokens)
        if drop:
            self.state.drop(self.snapshots.pop(0)[0])

    @precondition(lambda self: self.readers)
    @rule(times=st.integers(1, 4))
    def generate(self, times: int) -> None:
        for _ in range(times):
            self.step(dict.fromkeys(self.readers, 1))

    @precondition(lambda self: self.readers)
    @rule(
        counts=st.dictionaries(
            st.integers(0, ROWS - 1), st.sampled_from([1, 1, 1, 2, 5, 40, 127, 128]), min_size=1
        )
    )
    def read(self, counts: dict[int, int]) -> None:
        self.step({self.some_row(number): count for number, count in counts.items()})

    def step(self, counts: dict[int, int]) -> None:
        vocabulary = self.runner.config.vocab_size
        tokens = [self.generator.integers(0, vocabulary, n).tolist() for n in counts.values()]
        free = self.state.free_pages
        every = max(counts.values()) > 1
        type(self).steps += 1
        try:
            logits = self.runner.step(self.state, list(counts), tokens, every=every)
        except (ContextLengthError, MemoryShortageError) as error:
            type(self).refused += isinstance(error, MemoryShortageError)
            assert self.state.free_pages == free
            return
        ends = np.cumsum([len(each) if every else 1 for each in tokens])
        for row, ids, part in zip(counts, tokens, np.split(logits, ends[:-1]), strict=True):
            self.readers[row].got(ids, part)

    @invariant()
    def rows_are_as_long_as_what_they_read(self) -> None:
        assert self.state.rows == sorted(self.readers)
        for row, reader in self.readers.items():
            assert self.state.length(row) == len(reader.tokens)

    @invariant()
    def a_page_is_free_or_held(self) -> None:
        pages = {
            page
            for row, reader in self.readers.items()
            for page in self.state.table[row, : num_pages(len(reader.tokens))].tolist()
        }
        pages.update(page for snapshot, _ in self.snapshots for page in snapshot.pages)
        assert self.state.free_pages == PAGES - len(pages)

    def teardown(self) -> None:
        for reader in [*self.gone, *self.readers.values()]:
            if reader.logits:
                self.compare_with_it_alone(reader)
        for row in self.state.rows:
            self.state.release(row)
        for snapshot, _ in self.snapshots:
            self.state.drop(snapshot)
        assert (self.state.free_rows, self.state.free_pages) == (ROWS, PAGES)

    def compare_with_it_alone(self, reader: Reader) -> None:
        state = self.runner.new_state(rows=1, capacity=len(reader.tokens))
        alone = self.runner.step(state, [state.admit()], [reader.tokens], every=True)
        found = np.stack(list(reader.logits.values()))
        np.testing.assert_array_equal(found, alone[list(reader.logits)])


@pytest.fixture(
    scope="module",
    params=[name for name in backends_under_test() if name in ("reference", "numba")],
)
def ops(request: pytest.FixtureRequest) -> Iterator[Ops[Any, Any, Any]]:
    yield from loaded(request.param)


@pytest.mark.parametrize("model", MODELS)
def test_rows_at_random_have_the_bits_that_they_have_alone(
    ops: Ops[Any, Any, Any], model: str
) -> None:
    config, storage = MODELS[model]
    weights = ops.prepare(freeze(random_weights(config)))

    class Rows(RandomRows):
        runner = Engine(config, weights, ops, kv_cache=storage)

    run_state_machine_as_test(Rows, settings=settings(max_examples=12, stateful_step_count=45))

    assert Rows.steps >= 150
    assert Rows.refused > 0
