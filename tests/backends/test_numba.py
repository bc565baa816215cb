"""What only the Numba backend can get wrong: its layouts, its threads, its scratch memory, its limits.

Legend: see `nanochat.backends.numba_kernels.linear`.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray

from bench.parity_cases import CASES, random_weights
from nanochat.backends.numba import NumbaOps
from nanochat.backends.numba_kernels import (
    activation,
    attention,
    delta,
    dense,
    linear,
    mhc,
    quantize,
    threads,
)
from nanochat.backends.numba_kernels.lanes import LANES
from nanochat.config import ModelConfig
from nanochat.errors import InputError
from nanochat.init import freeze
from nanochat.model import forward, slots

Values = NDArray[np.float32]
Codes = NDArray[np.int8]


def normal(*shape: int, seed: int = 0) -> Values:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


# Threads.


@dataclass(frozen=True)
class Call:
    """A kernel, its twin, what it reads, what it writes, and the number of its tasks."""

    kernel: Callable[..., None]
    parallel: Callable[..., None]
    inputs: list[Any]
    outputs: list[NDArray[Any]]
    tasks: int

    def run(self, parts: int) -> list[NDArray[Any]]:
        """Copies of the outputs, filled by one thread if `parts` is 0."""
        outputs = [array.copy() for array in self.outputs]
        if parts:
            self.parallel(*self.inputs, *outputs, self.tasks, min(parts, self.tasks))
        else:
            self.kernel(*self.inputs, *outputs, 0, self.tasks)
        return outputs


def calls() -> dict[str, Call]:
    x, y, gain = normal(37, 131), normal(37, 131, seed=1), normal(131)
    line, other = normal(997), normal(997, seed=1)
    streams, share, mixing = normal(37, 4, 131), normal(37, 4, seed=2), normal(37, 4, 4)
    heads, starts, tables = normal(2, 9, 4, 10), np.array([3, 0]), normal(12, 5)
    keys, values = normal(2, 2, 1, 12, LANES), normal(2, 2, 1, 12, LANES, seed=1)
    unit, unit_values = normal(2, 9, 3, 12) / 4, normal(2, 9, 3, 64)
    steps, memory = np.full((2, 9, 3), 0.5, np.float32), normal(2, 3, 2, 12, LANES)
    signal, before, taps = normal(2, 9, 13), normal(2, 3, 13), normal(4, 13)
    norms = dense.rms_norm, dense.rms_norm_parallel
    sums = dense.dense_product, dense.dense_product_parallel
    return {
        "dense_product": Call(*sums, [y, x], [normal(37, 37)], 37),
        "rms_norm": Call(*norms, [x, gain, 1e-6], [y], 37),
        "swiglu": Call(activation.swiglu, activation.swiglu_parallel, [line, other], [line], 997),
        "gate": Call(activation.gate, activation.gate_parallel, [line, other], [line], 997),
        "relu2": Call(activation.relu2, activation.relu2_parallel, [line], [other], 997),
        "relu2_glu": Call(
            activation.relu2_glu, activation.relu2_glu_parallel, [line, other], [line], 997
        ),
        "rotate": Call(
            attention.rotate,
            attention.rotate_parallel,
            [heads, tables, tables, starts],
            [heads],
            2 * 9,
        ),
        "attend": Call(
            attention.attend, attention.attend_parallel, [heads, keys, values, starts], [heads], 20
        ),
        "convolve": Call(
            delta.convolve, delta.convolve_parallel, [signal, before, taps], [signal], 2 * 9
        ),
        "delta_rule": Call(
            delta.delta_rule,
            delta.delta_rule_parallel,
            [unit, unit, unit_values, steps, steps],
            [memory, unit_values],
            2 * 3 * 2,
        ),
        "blend": Call(mhc.blend, mhc.blend_parallel, [streams, share], [x], 37),
        "mix": Call(mhc.mix, mhc.mix_parallel, [streams, y, share, mixing], [streams], 37),
    }


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("name", list(calls()))
def test_the_number_of_threads_changes_no_bit(name: str, parts: int) -> None:
    call = calls()[name]

    outputs = call.run(parts)

    for found, expected, untouched in zip(outputs, call.run(0), call.outputs, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert not np.array_equal(found, untouched)


def test_two_threads_may_run_one_model() -> None:
    config = CASES["grouped_query_attention"]
    ops = NumbaOps()
    weights = ops.prepare(freeze(random_weights(config)))
    ids = ops.tokens(np.arange(60)[None])
    expected = forward(ids, weights, config, ops)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: forward(ids, weights, config, ops), range(16)))

    for logits in found:
        np.testing.assert_array_equal(logits, expected)


def test_numbas_own_pool_warns_and_serves_two_threads() -> None:
    program = """
import logging, numpy as np
from concurrent.futures import ThreadPoolExecutor
from nanochat.backends.numba import NumbaOps
logging.basicConfig(format="%(message)s")
x, gain = np.ones((2000, 1024), np.float32), np.ones(1024, np.float32)
with ThreadPoolExecutor(4) as pool:
    results = pool.map(lambda _: NumbaOps().rms_norm(x, gain, eps=0.0), range(20))
print(all((y == 1).all() for y in results))
"""
    environment = {
        "NUMBA_THREADING_LAYER": "workqueue",
        "NUMBA_NUM_THREADS": "2",
        "PYTHONPATH": ":".join(sys.path),
    }

    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )

    assert result.stdout == "True\n", result.stderr
    assert "slower pool" in result.stderr


@pytest.mark.skipif(numba.get_num_threads() == 1, reason="there is one core")
def test_one_thread_works_alone_while_another_process_holds_a_core() -> None:
    used: list[str] = []

    def alone(_first: int, _last: int) -> None:
        used.append("alone")

    def together(_tasks: int, _parts: int) -> None:
        used.append("together")

    def stalled(_tasks: int, _parts: int) -> None:
        used.append("stalled")
        time.sleep(0.005)

    threads.run(alone, stalled, (), tasks=2, nanoseconds=1e5)
    threads.run(alone, together, (), tasks=2, nanoseconds=1e5)
    time.sleep(0.15)
    threads.run(alone, together, (), tasks=2, nanoseconds=1e5)

    assert used == ["stalled", "alone", "together"]


@pytest.mark.parametrize(("tasks", "nanoseconds"), [(1, 1e9), (2, 1e3)])
def test_little_work_stays_on_one_thread(tasks: int, nanoseconds: float) -> None:
    ranges: list[tuple[int, int]] = []

    def alone(first: int, last: int) -> None:
        ranges.append((first, last))

    def together(_tasks: int, _parts: int) -> None:
        raise AssertionError

    threads.run(alone, together, (), tasks=tasks, nanoseconds=nanoseconds)

    assert ranges == [(0, tasks)]


# Compilation.


@pytest.mark.parametrize("name", ["delta_by_pattern", "shared_expert", "adaptive_exit"])
def test_a_kernel_is_compiled_for_one_kind_of_arguments(name: str) -> None:
    config = CASES[name]
    ops = NumbaOps()
    weights = ops.prepare(freeze(random_weights(config)))
    ids = np.arange(2 * 40).reshape(2, 40) % config.vocab_size
    ids.flags.writeable = False
    state = ops.new_state(slots(config), batch=2, capacity=50)

    for piece in np.split(ids, [33, 34], axis=1):
        forward(ops.tokens(piece), weights, config, ops, state, only_last=True)

    modules = (activation, attention, delta, dense, linear, mhc, quantize)
    kernels = {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }
    assert len(kernels) > 30
    assert [name for name, found in kernels.items() if len(found.signatures) > 1] == []


# Memory.


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Start to fill every new uninitialised array with NaN, or with the smallest integer."""
    empty, empty_like = np.empty, np.empty_like

    def fill(array: NDArray[Any]) -> NDArray[Any]:
        array[...] = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min
        return array

    def start() -> None:
        monkeypatch.setattr(np, "empty", lambda *a, **k: fill(empty(*a, **k)))
        monkeypatch.setattr(np, "empty_like", lambda *a, **k: fill(empty_like(*a, **k)))

    return start


def poison_unused(state: Any, config: ModelConfig) -> None:
    """Fill the keys and values of positions that no token has taken yet."""
    for slot, arrays in zip(slots(config), state.arrays, strict=True):
        if slot.kind == "attention":
            keys, values, *_scales = arrays
            for b, length in enumerate(state.lengths):
                values[b, :, :, length:] = np.nan
                for position in range(length, keys.shape[2] * LANES):
                    keys[b, :, position // LANES, :, position % LANES] = np.nan


@pytest.mark.parametrize(
    "name", ["grouped_query_attention", "delta_by_ratio", "experts", "4_streams_dynamic_lite"]
)
def test_memory_that_was_never_written_is_never_read(name: str, poison: Callable[[], None]) -> None:
    config = CASES[name]
    ops = NumbaOps()
    weights = ops.prepare(freeze(random_weights(config)))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 40))

    def run(before_each_piece: Callable[[Any, ModelConfig], None]) -> list[Values]:
        state = ops.new_state(slots(config), batch=2, capacity=50)
        results = [forward(ops.tokens(ids), weights, config, ops)]
        for piece in np.split(ids, [33, 34, 35], axis=1):
            before_each_piece(state, config)
            results.append(forward(ops.tokens(piece), weights, config, ops, state))
        return results

    expected = run(lambda _state, _config: None)
    poison()
    found = run(poison_unused)

    for logits, clean in zip(found, expected, strict=True):
        np.testing.assert_array_equal(logits, clean)


@pytest.mark.parametrize("token", [-1, 67])
def test_a_token_outside_the_table_is_refused(token: int) -> None:
    config = CASES["grouped_query_attention"]
    ops = NumbaOps()
    weights = ops.prepare(freeze(random_weights(config)))

    with pytest.raises(InputError, match=f"{token}.* a table of 67 rows"):
        ops.embed(ops.tokens(np.array([[3, token]])), weights.embedding)
