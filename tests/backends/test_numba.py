"""What only the Numba backend can get wrong: its layouts, its threads, its scratch memory, its limits.

Legend: see `nanochat.backends.numba.products.linear`.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray

from nanochat.backends.numba.attention import attention, delta
from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.pending import realize
from nanochat.backends.numba.products import activation, linear
from nanochat.backends.numba.products.packing import Leaf
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.backends.numba.streams import mhc
from nanochat.config import ModelConfig
from nanochat.errors import InputError
from nanochat.generation.engine import Engine
from nanochat.init import freeze
from nanochat.model import forward
from nanochat.rows import PAGE, num_pages
from nanochat.slots import slots
from nanochat.weights import Weights
from tests.backends.leaves import normal, prepared, ternary_leaf
from tests.parity.cases import CASES
from tests.parity.random_models import random_weights
from tests.parity.rows import new_rows, run_step

pytestmark = pytest.mark.usefixtures("all_cores")

Values = NDArray[np.float32]


def model(name: str, *, num_threads: int) -> tuple[NumbaOps, Weights[Leaf], ModelConfig]:
    config = CASES[name]
    ops = NumbaOps(num_threads=num_threads)
    return ops, ops.prepare(freeze(random_weights(config))), config


def logits(name: str, *, num_threads: int) -> list[Values]:
    """Of a prompt without state, of the same prompt with it, and of some steps after it."""
    ops, weights, config = model(name, num_threads=num_threads)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 40))
    results = [ops.numpy(forward(ops.tokens(ids), weights, config, ops))]
    engine = Engine(config, weights, ops)
    state = engine.new_state(rows=2, capacity=50)
    rows = [state.admit(), state.admit()]
    for piece in np.split(ids, [33, *range(34, 40)], axis=1):
        # Steps of one token are repeated.
        y = engine.step(state, rows, piece.tolist(), every=piece.shape[1] > 1)
        results += [y]
    return results


# Threads.

FAMILIES = ["grouped_query_attention", "delta_by_ratio", "experts", "4_streams_dynamic_lite"]


@pytest.mark.parametrize("num_threads", [2, 3])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_number_of_threads_changes_no_bit(
    name: str, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(name, num_threads=1)
    # Otherwise these small models are not worth a second thread.
    monkeypatch.setattr("nanochat.backends.numba.runtime.threads._CHUNK", 1)

    found = logits(name, num_threads=num_threads)

    for y, alone in zip(found, expected, strict=True):
        np.testing.assert_array_equal(y, alone)


def test_two_python_threads_may_run_one_model() -> None:
    ops, weights, config = model("grouped_query_attention", num_threads=2)
    ids = ops.tokens(np.arange(60)[None])
    expected = ops.numpy(forward(ids, weights, config, ops))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: realize(forward(ids, weights, config, ops)), range(16)))

    for y in found:
        np.testing.assert_array_equal(y, expected)


def test_two_models_may_generate_at_once() -> None:
    names = ["grouped_query_attention", "4_streams_dynamic_lite"]
    expected = [logits(name, num_threads=2) for name in names]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: logits(name, num_threads=2), names * 3))

    for results, alone in zip(found, expected * 3, strict=True):
        for y, right in zip(results, alone, strict=True):
            np.testing.assert_array_equal(y, right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_generates_what_its_parent_does() -> None:
    expected = logits("grouped_query_attention", num_threads=2)

    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(logits, ("grouped_query_attention",), {"num_threads": 2}).get(60)

    for y, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(y, right)


# Inputs.


@pytest.fixture(scope="module")
def ops() -> NumbaOps:
    return NumbaOps(num_threads=2)


@pytest.fixture(scope="module")
def leaf(ops: NumbaOps) -> Leaf:
    found: Leaf = prepared(ops, ternary_leaf(67, 512, block=256, activation_block=128))
    return found


def read_only(x: Values) -> Values:
    view = x.view()
    view.flags.writeable = False
    return view


def strided(x: Values) -> Values:
    return np.repeat(x, 2, axis=1)[:, ::2]


def unaligned(x: Values) -> Values:
    memory = np.empty(x.nbytes + 1, np.uint8)[1:]
    memory[:] = np.frombuffer(x.tobytes(), np.uint8)
    return memory.view(np.float32).reshape(x.shape)


@pytest.mark.parametrize("kind", [read_only, strided, unaligned, np.asfortranarray, np.float64])
def test_any_array_of_numbers_may_be_given(
    kind: Callable[[Values], Any], ops: NumbaOps, leaf: Leaf
) -> None:
    x = normal(5, 512)
    (expected,) = ops.project(ops.array(x), leaf)

    (y,) = ops.project(ops.array(kind(x)), leaf)

    np.testing.assert_array_equal(ops.numpy(y), ops.numpy(expected))


def test_token_ids_may_be_read_only_and_strided(ops: NumbaOps) -> None:
    ids = np.arange(20)[None]
    ids.flags.writeable = False

    tokens = ops.tokens(ids[:, ::2])

    np.testing.assert_array_equal(tokens, ids[:, ::2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_spoils_its_own_token_alone(
    value: float, ops: NumbaOps, leaf: Leaf
) -> None:
    x = normal(3, 512)
    x[1, 300] = value

    (y,) = ops.project(ops.rms_norm(ops.array(x), np.ones(512, np.float32), eps=1e-6), leaf)

    assert np.isfinite(ops.numpy(y)).all(axis=1).tolist() == [True, False, True]
    assert np.isnan(ops.numpy(y)[1]).all()


def test_no_tokens_give_no_rows(ops: NumbaOps, leaf: Leaf) -> None:
    (y,) = ops.project(ops.array(np.empty((0, 512), np.float32)), leaf)

    assert ops.numpy(y).shape == (0, 67)


def test_more_threads_than_cores_are_no_error(leaf: Leaf) -> None:
    x = normal(300, 512)
    (expected,) = NumbaOps(num_threads=1).project(x, leaf)

    (y,) = NumbaOps(num_threads=16).project(x, leaf)

    np.testing.assert_array_equal(y, expected)


# Compilation.


def from_python(kernel: Dispatcher) -> list[Any]:
    """The types of arguments for which a kernel was compiled, but for its uses inside other kernels."""
    return [kinds for kinds in kernel.signatures if not any(map(_is_constant, kinds))]


def _is_constant(kind: Any) -> bool:
    return isinstance(kind, numba.types.Literal | numba.types.Omitted)


@pytest.mark.parametrize("name", ["delta_by_pattern", "shared_expert", "adaptive_exit"])
def test_a_kernel_is_compiled_for_one_kind_of_arguments(name: str) -> None:
    config = CASES[name]
    ops = NumbaOps()
    weights = ops.prepare(freeze(random_weights(config)))
    ids = np.arange(2 * 40).reshape(2, 40) % config.vocab_size
    ids.flags.writeable = False
    forward(ops.tokens(ids), weights, config, ops, only_last=True)
    state = new_rows(ops, config, 2, capacity=50)

    for piece in np.split(ids, [33, 34], axis=1):
        run_step(ops, weights, config, state, [0, 1], list(piece), only_last=True)

    modules = activation, attention, delta, linear, mhc
    kernels = {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }
    for make in (attention.append_kernel, attention.attention_kernel):
        made = make("float32")
        assert isinstance(made, Dispatcher)
        kernels[make.__name__] = made
    assert len(kernels) > 30
    assert [n for n, k in kernels.items() if len(from_python(k)) > 1] == []


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
    taken = np.zeros(state.num_pages + 1, np.int64)
    for row in state.rows:
        pages = state.table[row, : num_pages(state.length(row))]
        taken[pages] = np.minimum(PAGE, state.length(row) - PAGE * np.arange(len(pages)))
    for slot, arrays in zip(slots(config), state.arrays, strict=True):
        if slot.kind == "attention":
            keys, values, *_scales = arrays
            for page, first in enumerate(taken):
                values[page, :, :, first:] = np.nan
                for place in range(first, PAGE):
                    keys[page, :, place // LANES, :, place % LANES] = np.nan


@pytest.mark.parametrize("name", FAMILIES)
def test_memory_that_was_never_written_is_never_read(name: str, poison: Callable[[], None]) -> None:
    config = CASES[name]
    ops = NumbaOps()
    weights = ops.prepare(freeze(random_weights(config)))
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (3, 140))

    def run(before_each_piece: Callable[[Any, ModelConfig], None]) -> list[Values]:
        results = [ops.numpy(forward(ops.tokens(ids), weights, config, ops))]
        engine = Engine(config, weights, ops)
        state = engine.new_state(rows=5, capacity=150)
        rows = [state.admit() for _ in range(5)]
        for counts in ([130, 33, 1, 2], [1, 1, 1, 1, 1], [1, 2, 130, 1], [1, 1, 1, 1, 1], [1] * 3):
            before_each_piece(state, config)
            tokens = [ids[row % 3, :count].tolist() for row, count in enumerate(counts)]
            results.append(engine.step(state, rows[: len(counts)], tokens))
        return results

    expected = run(lambda _state, _config: None)
    poison()
    found = run(poison_unused)

    for y, clean in zip(found, expected, strict=True):
        np.testing.assert_array_equal(y, clean)


@pytest.mark.parametrize("token", [-1, 67])
def test_a_token_outside_the_table_is_refused(token: int) -> None:
    config = CASES["grouped_query_attention"]
    ops = NumbaOps()
    weights = ops.prepare(freeze(random_weights(config)))

    with pytest.raises(InputError, match=f"{token}.* a table of 67 rows"):
        ops.embed(ops.tokens(np.array([[3, token]])), weights.embedding)
