"""Attention of the Numba backend over narrow keys and values: its kernels alone, memory, and what it refuses."""

import itertools
from typing import Any, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat import backends

if backends.unavailable("numba") is not None:
    pytest.skip("needs numba", allow_module_level=True)

from numba import njit

from nanochat.backends.numba import state as numba_state
from nanochat.backends.numba.attention import attention, launching
from nanochat.backends.numba.attention.lane_product import MOST_ROWS, multiply
from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.backends.numba.state import Spans, buffers
from nanochat.backends.numba.steps import NumbaStep
from nanochat.errors import BackendError
from nanochat.ops import Slot, Storage
from nanochat.rows import PAGE, num_pages, step_of_spans
from nanochat.ternary import KV_BLOCK, quantize_activations, quantize_kv
from tests.backends.leaves import Values, normal
from tests.parity.rows import stepping

every_storage = pytest.mark.parametrize("storage", get_args(Storage))


def step_of(batch: int, start: int, length: int) -> NumbaStep:
    return NumbaStep(**vars(step_of_spans(range(batch), [start] * batch, [length] * batch)))


def filled(
    storage: Storage, k: Values, v: Values, capacity: int, *, poisoned: bool = True
) -> tuple[list[Any], NDArray[np.int64]]:
    """Buffers with k and v at the beginning of each row, what no computation survives behind them, and their table."""
    batch, length, heads, features = k.shape
    slot = Slot(kind="attention", heads=heads, key_dim=features, storage=storage)
    pages = num_pages(capacity)
    kept: list[Any] = list(buffers(slot, pages=batch * pages, rows=0))
    if poisoned:
        for array in kept:
            # As float16 bits, a NaN.
            array[...] = (
                0x7E00 if array.dtype == np.uint16 else np.nan if array.dtype.kind == "f" else 99
            )
    # The last page is the first row's first.
    table = np.arange(batch * pages)[::-1].reshape(batch, pages).copy()
    spans = Spans(step=step_of(batch, 0, length), table=table, number=batch)
    launching.append(Launcher(1), k, v, storage, kept, spans)
    return kept, table


def attend(
    storage: Storage,
    q: Values,
    filled: tuple[list[Any], NDArray[np.int64]],
    start: int,
    cuts: list[int],
) -> Values:
    """Run the tasks in the pieces that the cuts make."""
    (kept, table), y = filled, np.full_like(q, np.nan)
    batch, length, heads, features = q.shape
    step = step_of(batch, start, length)
    groups = kept[0].shape[1]
    parts = step.parts_of(groups, heads // groups)
    spans = step.rows, step.starts, step.counts, step.offsets
    q, result = (x.reshape(-1, heads, features) for x in (q, y))
    for first, last in itertools.pairwise(cuts):
        attention.attention_kernel(storage)(q, *kept, table, *spans, parts, result, first, last)
    return y


def float16_of(kept: NDArray[np.uint16]) -> NDArray[np.float16]:
    return kept.view(np.float16)


def four_bit_codes(numbers: Values) -> NDArray[np.int8]:
    """Codes of every value from -8 to 7."""
    return np.clip(np.rint(4 * numbers), -8, 7).astype(np.int8)


def packed(numbers: Values) -> NDArray[np.uint8]:
    """The same of rows of lanes, as `four_bits` packs them."""
    low, high = np.split(four_bit_codes(numbers).view(np.uint8) & 15, 2, axis=1)
    both: NDArray[np.uint8] = low | high << 4
    return both


def unpacked(kept: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Undo `packed`, along the last axis."""
    signed = kept.view(np.int8)
    return np.concatenate([signed << 4 >> 4, signed >> 4], axis=-1)


@njit
def multiplied(
    rows: int, weights: Values, offsets: Any, matrix: Any, sums: Values, begun: int
) -> None:
    multiply(rows, weights, offsets, matrix, 0, matrix.shape[0], sums, LANES, begun, 0, None)


@njit
def multiplied_scaled(
    rows: int, weights: Values, offsets: Any, matrix: Any, sums: Values, scales: Any
) -> None:
    count = matrix.shape[0]
    multiply(rows, weights, offsets, matrix, 0, count, sums, LANES, 0, 0, scales)


@pytest.mark.parametrize("rows", range(1, MOST_ROWS + 1))
@pytest.mark.parametrize("count", [1, KV_BLOCK, KV_BLOCK + 5, 3 * KV_BLOCK])
def test_a_product_with_scaled_codes_is_that_with_what_they_stand_for(
    rows: int, count: int
) -> None:
    weights, numbers = normal(rows, count), normal(count, LANES, seed=1)
    offsets = np.arange(rows) * count
    blocks = -(-count // KV_BLOCK)
    # In pages of positions, of which a tile is multiplied.
    scales = normal(blocks, PAGE, seed=2).view(np.uint32) >> 16
    wide = (scales << 16).view(np.float32)[:, :LANES]
    meant = four_bit_codes(numbers) * np.repeat(wide, KV_BLOCK, axis=0)[:count]
    sums = np.full((rows, LANES), np.nan, np.float32)

    multiplied_scaled(rows, weights, offsets, packed(numbers), sums, scales.astype(np.uint16))

    np.testing.assert_allclose(sums, weights @ meant.astype(np.float64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", range(1, MOST_ROWS + 1))
@pytest.mark.parametrize("count", [0, 1, 37])
def test_a_product_of_rows_equals_that_of_numpy_in_every_storage(rows: int, count: int) -> None:
    weights, numbers = normal(rows, count + 3), normal(count, LANES, seed=1)
    offsets = np.arange(rows) * (count + 3) + 2
    kept: dict[Storage, NDArray[Any]] = {
        "float32": numbers,
        "float16": numbers.astype(np.float16).view(np.uint16),
        "int8": np.rint(40 * numbers).astype(np.int8),
        "int4": packed(numbers),
    }
    sums = {storage: np.full((rows, LANES), np.nan, np.float32) for storage in kept}

    for storage, matrix in kept.items():
        multiplied(rows, weights, offsets, matrix, sums[storage], 0)

    used = weights[:, 2 : 2 + count].astype(np.float64)
    exact: dict[Storage, NDArray[Any]] = {
        "float32": numbers,
        "float16": kept["float16"].view(np.float16),
        "int8": kept["int8"],
        "int4": four_bit_codes(numbers),
    }
    for storage, matrix in exact.items():
        np.testing.assert_allclose(sums[storage], used @ matrix, rtol=1e-5, atol=1e-4)


@every_storage
@pytest.mark.parametrize("cut", [0, 1, 20, 37])
def test_a_product_that_is_taken_in_parts_has_the_bits_of_the_whole(
    storage: Storage, cut: int
) -> None:
    weights, numbers = normal(3, 40), normal(37, LANES, seed=1)
    kept: dict[Storage, NDArray[Any]] = {
        "float32": numbers,
        "float16": numbers.astype(np.float16).view(np.uint16),
        "int8": (40 * numbers).astype(np.int8),
        "int4": packed(numbers),
    }
    matrix = kept[storage]
    offsets = np.arange(3) * 40
    whole, parts = np.empty((3, LANES), np.float32), np.empty((3, LANES), np.float32)

    multiplied(3, weights, offsets, matrix, whole, 0)
    multiplied(3, weights, offsets, matrix[:cut], parts, 0)
    multiplied(3, weights, offsets + cut, matrix[cut:], parts, 1)

    np.testing.assert_array_equal(parts, whole)


def test_float16_keys_and_values_equal_those_of_numpy() -> None:
    x = normal(1, 4, 1, 4096) * np.array([1, 1e-4, 1e-7, 3e4], np.float32)[:, None, None]

    (keys, values, *_), _ = filled("float16", x, -x, 4)

    with np.errstate(over="ignore"):
        expected = x[0, :, 0].astype(np.float16)
    found = float16_of(keys)[0, 0, 0, :, :4].T
    np.testing.assert_array_equal(found, expected)
    found = np.moveaxis(float16_of(values)[0, 0], 0, 1).reshape(PAGE, 4096)[:4]
    np.testing.assert_array_equal(found, -expected)


@pytest.mark.parametrize("features", [1, 33, 128, 256])
def test_int8_keys_and_values_equal_those_of_the_contract(features: int) -> None:
    sizes = np.array([1, 1e-37, 1e-40, 0, 1e30], np.float32)[:, None, None]
    k, v = normal(1, 5, 1, features) * sizes, normal(1, 5, 1, features, seed=1) * sizes

    (keys, values, key_scales, value_scales), _ = filled("int8", k, v, 5)

    for x, scales in ((k, key_scales), (v, value_scales)):
        _, expected = quantize_activations(x[0, :, 0], block=features)
        np.testing.assert_array_equal(scales[0, 0, 0, :5], expected[:, 0])
    codes, _ = quantize_activations(k[0, :, 0], block=features)
    np.testing.assert_array_equal(keys[0, 0, 0, :, :5].T, codes)
    codes, _ = quantize_activations(v[0, :, 0], block=features)
    lanes = np.moveaxis(values[0, 0], 0, 1).reshape(PAGE, -1)[:5, :features]
    np.testing.assert_array_equal(lanes, codes)


@pytest.mark.parametrize("features", [1, 33, 64, 129, 256])
def test_int4_keys_and_values_equal_those_of_the_contract(features: int) -> None:
    sizes = np.array([1, 1e-37, 1e-40, 0, 1e30], np.float32)[:, None, None]
    # More than a tile of positions: both halves of the bytes of keys.
    k, v = (normal(1, 40, 1, features, seed=seed) * np.tile(sizes, (8, 1, 1)) for seed in (0, 1))
    k[0, 7, 0, -1], v[0, 30, 0, 0] = np.nan, np.inf

    (keys, values, key_scales, value_scales), _ = filled("int4", k, v, 40)

    for x, found, scales in (
        (k, np.moveaxis(unpacked(keys)[0, 0], 1, 2).reshape(PAGE, -1), key_scales),
        (v, np.moveaxis(unpacked(values)[0, 0], 0, 1).reshape(PAGE, -1), value_scales),
    ):
        codes, expected = quantize_kv(x[0, :, 0])
        np.testing.assert_array_equal(found[:40, :features], codes)
        numbers = (scales[0, 0, :, :40].astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(numbers.T, expected)


@every_storage
def test_attention_is_the_same_however_its_tasks_are_cut(storage: Storage) -> None:
    k, v, q = normal(2, 80, 2, 10), normal(2, 80, 2, 10, seed=1), normal(2, 40, 6, 10, seed=2)
    kept = filled(storage, k, v, 80)
    # Three heads share a key head: 120 queries of it in each sequence.
    tasks = 2 * 2 * -(-40 * 3 // attention.QUERIES)

    whole = attend(storage, q, kept, 40, [0, tasks])
    parts = attend(storage, q, kept, 40, [0, 1, 2, 7, tasks])

    assert np.isfinite(whole).all()
    np.testing.assert_array_equal(parts, whole)


@every_storage
@pytest.mark.parametrize("length", [1, LANES - 1, LANES, LANES + 1, PAGE, PAGE + 1, 1023])
def test_memory_behind_the_last_position_does_not_matter(storage: Storage, length: int) -> None:
    k, v, q = normal(1, length, 1, 33), normal(1, length, 1, 33, seed=1), normal(1, 1, 3, 33)

    clean = filled(storage, k, v, length, poisoned=False)
    expected = attend(storage, q, clean, length - 1, [0, 1])
    found = attend(storage, q, filled(storage, k, v, length + PAGE), length - 1, [0, 1])

    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found, expected)


@every_storage
def test_a_query_gets_the_same_bits_alone_as_among_others_of_its_row(storage: Storage) -> None:
    length = PAGE + 40
    k, v = normal(1, length, 2, 33), normal(1, length, 2, 33, seed=1)
    q = normal(1, length, 6, 33, seed=2)
    kept = filled(storage, k, v, length)
    tasks = 2 * -(-length * 3 // attention.QUERIES)

    together = attend(storage, q, kept, 0, [0, tasks])

    for t in (0, 1, 30, PAGE - 1, PAGE, length - 1):
        alone = attend(storage, q[:, t : t + 1].copy(), kept, t, [0, 2])
        np.testing.assert_array_equal(together[:, t], alone[:, 0])


@every_storage
def test_a_query_reads_no_value_after_its_own(storage: Storage) -> None:
    k, v, q = normal(1, 20, 2, 8), normal(1, 20, 2, 8, seed=1), normal(1, 20, 2, 8, seed=2)
    clean = attend(storage, q, filled(storage, k, v, 20), 0, [0, 2])
    k[0, 9], v[0, 9] = np.nan, np.nan

    y = attend(storage, q, filled(storage, k, v, 20), 0, [0, 2])

    np.testing.assert_array_equal(y[:, :9], clean[:, :9])
    assert np.isnan(y[:, 9:]).all()


def test_scores_of_minus_infinity_count_for_nothing_unless_there_is_no_other() -> None:
    k, v, q = (
        normal(1, 1200, 1, 4),
        normal(1, 1200, 1, 4, seed=1),
        np.ones((1, 1, 1, 4), np.float32),
    )
    k[0, :1100, 0, 1] = -np.inf
    kept = filled("float32", k, v, 1200)

    among_others = attend("float32", q, kept, 1199, [0, 1])
    alone = attend("float32", q, kept, 1050, [0, 1])

    expected = attend("float32", q, filled("float32", k[:, 1100:], v[:, 1100:], 100), 99, [0, 1])
    np.testing.assert_allclose(among_others, expected, rtol=1e-5)
    assert np.isnan(alone).all()


@pytest.mark.parametrize(
    ("storage", "of_a_vector"), [("float32", 256), ("float16", 128), ("int8", 68), ("int4", 36)]
)
def test_keys_and_values_take_the_bytes_of_their_storage(
    storage: Storage, of_a_vector: int
) -> None:
    slot = Slot(kind="attention", heads=3, key_dim=64, storage=storage)

    kept = buffers(slot, pages=2 * num_pages(1024), rows=0)

    assert sum(array.nbytes for array in kept) == 2 * 2 * 3 * 1024 * of_a_vector
    assert [array.ctypes.data % 64 for array in kept[:2]] == [0, 0]


@every_storage
def test_a_fork_that_writes_keeps_its_page_as_it_was_for_the_other(storage: Storage) -> None:
    ops = NumbaOps()
    slot = Slot(kind="attention", heads=2, key_dim=10, storage=storage)
    state = ops.new_state([slot], rows=2, capacity=64)
    first = state.admit()
    k, v = normal(1, 35, 2, 10), normal(1, 35, 2, 10, seed=1)
    with stepping(state, [first], [35]):
        ops.append_kv(k, v, state=state, slot=0)
    before = [array[state.table[first, 0]].copy() for array in state.arrays[0]]
    second = state.fork(first)

    with stepping(state, [second], [1]):
        ops.append_kv(v[:, :1], k[:, :1], state=state, slot=0)
        pages = state.table[[first, second], 0]

    assert pages[0] != pages[1]
    for array, kept in zip(state.arrays[0], before, strict=True):
        np.testing.assert_array_equal(array[pages[0]], kept)
    keys, values = state.arrays[0][:2]
    keys, values = keys[pages], values[pages]
    np.testing.assert_array_equal(keys[1, :, :1], keys[0, :, :1])
    np.testing.assert_array_equal(values[1, :, :, :35], values[0, :, :, :35])
    assert (values[1, :, :, 35] != values[0, :, :, 35]).any()


def test_float16_is_refused_where_the_processor_cannot_convert_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(numba_state, "has_half", lambda: False)
    slot = Slot(kind="attention", heads=1, key_dim=2, storage="float16")

    with pytest.raises(BackendError, match=r"F16C.*kv_cache='int8', 'int4' or 'float32'"):
        NumbaOps().new_state([slot], rows=1, capacity=1)


def test_the_largest_score_counts_for_all_however_large_it_is() -> None:
    q, k, v = normal(1, 1, 1, 8), normal(1, 5, 1, 8, seed=1), normal(1, 5, 1, 8, seed=2)
    k *= np.float32(1e13)
    kept = filled("float32", k, v, 8)

    y = attend("float32", q, kept, 4, [0, 1])

    np.testing.assert_allclose(y[0, 0, 0], v[0, (k[0, :, 0] @ q[0, 0, 0]).argmax(), 0], rtol=1e-6)
