"""The kernels of mHC: each against the reference, whatever the number of tokens, threads and columns."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.products.packing import TiledProjection, tile_projection
from nanochat.backends.numba.runtime.isa import has_half
from nanochat.backends.numba.runtime.launch import Pool
from nanochat.backends.numba.streams import mhc, projection
from nanochat.backends.numba.streams.projection import num_chunks, projector
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.config import Mixer
from nanochat.proof.tolerances import TOLERANCES, rms_error
from nanochat.weights import Dense, Mhc, Stored
from tests.backends.leaves import normal, prepared

pytestmark = pytest.mark.usefixtures("all_cores")

EPS = 1e-6
ITERATIONS = 20
# Rows of a projection with n streams: of identity, lite and sinkhorn mixers.
ROWS = [(2, 4), (2, 6), (2, 8), (4, 8), (4, 24), (4, 32)]
WIDTHS = [1, 7, 127, 128, 129, 256, 509]

Floats = NDArray[np.float32]


def site(n: int, width: int, mixer: Mixer, *, dynamic: bool) -> Mhc[Stored]:
    mix = {"lite": {2: 2, 4: 24}[n], "sinkhorn": n * n, "identity": 0}[mixer]
    deviation = (n * width) ** -0.5
    projection = (normal(2 * n + mix, n * width, seed=5) * deviation).astype(np.float16)
    return Mhc(
        read=Dense(values=normal(n, seed=1)),
        write=Dense(values=normal(n, seed=2)),
        mix=Dense(values=normal(mix, seed=3)) if mix else None,
        projection=Dense(values=projection) if dynamic else None,
        gates=Dense(values=normal(3, seed=4)) if dynamic else None,
    )


def on(ops: Any, leaves: Mhc[Stored]) -> Mhc[Any]:
    return Mhc(
        **{k: None if leaf is None else prepared(ops, leaf) for k, leaf in vars(leaves).items()}
    )


def passed(
    ops: Any, leaves: Mhc[Stored], streams: Floats, y: Floats, mixer: Mixer
) -> list[NDArray[Any]]:
    """What a site reads, its coefficients, and what it writes."""
    x = ops.array(streams)
    u, post, mix = ops.mhc_read(x, on(ops, leaves), mixer=mixer, iterations=ITERATIONS, eps=EPS)
    written = ops.mhc_write(x, ops.array(y), post, mix)
    results = [u, post, written, ops.mhc_close(written), ops.mhc_open(u, streams.shape[2])]
    return [ops.numpy(result) for result in (*results, *([] if mix is None else [mix]))]


@pytest.mark.parametrize("mixer", ["lite", "sinkhorn", "identity"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize(
    ("batch", "tokens", "width"),
    [(1, 1, 1), (1, 1, 1280), (3, 1, 33), (1, 3, 131), (2, 65, 17)],
    ids=str,
)
def test_a_site_is_the_references(
    batch: int, tokens: int, width: int, n: int, dynamic: bool, mixer: Mixer
) -> None:
    leaves = site(n, width, mixer, dynamic=dynamic)
    streams, y = normal(batch, tokens, n, width, seed=6), normal(batch, tokens, width, seed=7)

    expected = passed(ReferenceOps(), leaves, streams, y, mixer)
    found = passed(NumbaOps(num_threads=1), leaves, streams, y, mixer)

    errors = [rms_error(*pair) for pair in zip(expected, found, strict=True)]
    assert max(errors) < TOLERANCES["mhc_read"].limit


@pytest.mark.parametrize("mixer", ["lite", "sinkhorn"])
@pytest.mark.parametrize("n", [2, 4])
def test_a_token_among_others_is_that_token_alone(n: int, mixer: Mixer) -> None:
    leaves = site(n, 300, mixer, dynamic=True)
    streams, y = normal(1, 19, n, 300), normal(1, 19, 300, seed=1)
    ops = NumbaOps(num_threads=1)

    together = passed(ops, leaves, streams, y, mixer)
    alone = [passed(ops, leaves, streams[:, t : t + 1], y[:, t : t + 1], mixer) for t in range(19)]

    for i, whole in enumerate(together):
        np.testing.assert_array_equal(np.concatenate([one[i] for one in alone], axis=1), whole)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("mixer", ["lite", "sinkhorn"])
@pytest.mark.parametrize("n", [2, 4])
def test_a_token_that_is_not_finite_spoils_its_own_results_alone(
    n: int, mixer: Mixer, value: float
) -> None:
    leaves = site(n, 200, mixer, dynamic=True)
    streams, y = normal(1, 11, n, 200), normal(1, 11, 200, seed=1)
    streams[0, 4, 1, 150] = value

    expected = passed(ReferenceOps(), leaves, streams, y, mixer)
    found = passed(NumbaOps(num_threads=1), leaves, streams, y, mixer)

    for e, f in zip(expected, found, strict=True):
        np.testing.assert_array_equal(np.isnan(e), np.isnan(f))
        assert not np.isnan(np.delete(f, 4, axis=1)).any()


def test_streams_of_zeros_have_the_coefficients_of_the_biases() -> None:
    dynamic, static = (site(4, 64, "lite", dynamic=d) for d in (True, False))
    streams, y = np.zeros((1, 1, 4, 64), np.float32), normal(1, 1, 64)
    ops = NumbaOps(num_threads=1)

    _, *found = passed(ops, dynamic, streams, y, "lite")
    _, *expected = passed(ops, static, streams, y, "lite")

    for e, f in zip(expected, found, strict=True):
        np.testing.assert_array_equal(e.ravel(), f.ravel())


def products(streams: Floats, tiled: Any, *, first: int, last: int, out: list[Floats]) -> None:
    numbers = tiled.numbers
    kernel = projector(numbers.dtype.name, numbers.shape[1], streams.shape[1])
    kernel(streams, numbers, *out, first, last)


def results(streams: Floats, lanes: int) -> list[Floats]:
    tokens, _, width = streams.shape
    shape = tokens, num_chunks(width)
    return [np.full((*shape, lanes), np.nan, "f"), np.full(shape, np.nan, "f")]


def num_tasks(streams: Floats) -> int:
    tokens, _, width = streams.shape
    groups: int = -(-tokens // projection.TOKENS)
    return num_chunks(width) * groups


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("tokens", [1, 3, 65])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("n", "rows"), ROWS, ids=str)
def test_the_chunks_of_a_product_add_up_to_it(
    n: int, rows: int, width: int, tokens: int, dtype: Any
) -> None:
    projection, streams = normal(rows, n * width).astype(dtype), normal(tokens, n, width, seed=1)
    tiled = tile_projection(projection)
    sums, squares = out = results(streams, tiled.numbers.shape[1])

    products(streams, tiled, first=0, last=num_tasks(streams), out=out)

    flat = streams.reshape(tokens, -1)
    expected = flat @ projection.astype(np.float32).T
    assert rms_error(expected, sums.sum(axis=1)[:, :rows]) < 1e-6
    assert rms_error(np.square(flat).sum(axis=1), squares.sum(axis=1)) < 1e-6


@pytest.mark.parametrize(("n", "rows"), ROWS, ids=str)
def test_a_product_does_not_depend_on_how_its_tasks_are_shared(n: int, rows: int) -> None:
    streams = normal(13, n, 401)
    tiled = tile_projection(normal(rows, n * 401, seed=1).astype(np.float16))
    whole, shared = (results(streams, tiled.numbers.shape[1]) for _ in range(2))
    tasks = num_tasks(streams)

    products(streams, tiled, first=0, last=tasks, out=whole)
    for task in reversed(range(tasks)):
        products(streams, tiled, first=task, last=task + 1, out=shared)

    np.testing.assert_array_equal(whole[0], shared[0])
    np.testing.assert_array_equal(whole[1], shared[1])


def test_a_projection_is_kept_in_float16_if_that_is_exact() -> None:
    halves = normal(24, 64).astype(np.float16)

    assert tile_projection(halves).numbers.dtype == (np.uint16 if has_half() else np.float32)
    assert tile_projection(halves.astype(np.float32)).numbers.itemsize == (2 if has_half() else 4)
    assert tile_projection(normal(24, 64)).numbers.dtype == np.float32
    assert tile_projection(normal(24, 64) * np.float32(1e6)).numbers.dtype == np.float32


def test_float16_and_the_same_float32_numbers_have_equal_products() -> None:
    # The least number, subnormal ones, and the largest.
    projection = np.tile(np.array([2.0**-24, 3.1e-6, -6e-5, 65504, -0.0, 1], np.float16), (8, 40))
    streams, narrow = normal(9, 2, 120), tile_projection(projection)
    wide = TiledProjection(numbers=np.ascontiguousarray(projection.T, np.float32), rows=8)
    both = [results(streams, 8) for _ in range(2)]

    for tiled, out in zip((narrow, wide), both, strict=True):
        products(streams, tiled, first=0, last=num_tasks(streams), out=out)

    np.testing.assert_array_equal(both[0][0], both[1][0])


@pytest.mark.parametrize("width", [1, 15, 16, 17, 509])
@pytest.mark.parametrize("n", [2, 4])
def test_streams_can_be_mixed_in_place(n: int, width: int) -> None:
    streams, y = normal(3, n, width), normal(3, width, seed=1)
    write, mixing = normal(1, n, seed=2), normal(3, n, n, seed=3)
    apart = np.full_like(streams, np.nan)

    mhc.mix(streams, y, write, mixing, apart, 0, 3)
    mhc.mix(streams, y, write, mixing, streams, 0, 3)

    np.testing.assert_array_equal(apart, streams)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_streams_can_be_written_to_in_place(n: int) -> None:
    streams, y, write = normal(3, n, 37), normal(3, 37, seed=1), normal(3, n, seed=2)
    expected = streams + write[:, :, None] * y[:, None]

    mhc.add(streams, y, write, streams, 0, 3)

    np.testing.assert_allclose(streams, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_copies_have_themselves_as_mean(n: int) -> None:
    x = normal(3, 37)
    streams, mean = np.full((3, n, 37), np.nan, np.float32), np.full_like(x, np.nan)

    mhc.open_streams(x, streams, 0, 3)
    mhc.close(streams, mean, 0, 3)

    np.testing.assert_array_equal(streams, np.repeat(x[:, None], n, axis=1))
    np.testing.assert_allclose(mean, x, rtol=2e-7)


@pytest.mark.parametrize("mixer", ["lite", "sinkhorn", "identity"])
def test_two_threads_give_the_bits_of_one(mixer: Mixer) -> None:
    leaves = site(4, 600, mixer, dynamic=True)
    streams, y = normal(1, 40, 4, 600), normal(1, 40, 600, seed=1)

    one, two = (passed(NumbaOps(num_threads=n), leaves, streams, y, mixer) for n in (1, 2))

    for alone, shared in zip(one, two, strict=True):
        np.testing.assert_array_equal(alone, shared)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("mixer", ["lite", "sinkhorn", "identity"])
def test_a_site_can_be_repeated_without_python(mixer: Mixer, dynamic: bool) -> None:
    ops = NumbaOps(num_threads=1)
    leaves = on(ops, site(4, 256, mixer, dynamic=dynamic))
    x, y = normal(1, 1, 4, 256), normal(1, 1, 256, seed=1)

    def step() -> Any:
        u, post, mix = ops.mhc_read(x, leaves, mixer=mixer, iterations=ITERATIONS, eps=EPS)
        return u, ops.mhc_close(ops.mhc_write(x, y, post, mix))

    noted, notes = ops.launch.note(step, Pool(most=1 << 20))
    x[:] = normal(1, 1, 4, 256, seed=2)
    y[:] = normal(1, 1, 256, seed=3)
    notes.repeat(1, positions=1)

    assert notes.complete
    for repeated, fresh in zip(noted, step(), strict=True):
        np.testing.assert_array_equal(ops.numpy(repeated), ops.numpy(fresh))
