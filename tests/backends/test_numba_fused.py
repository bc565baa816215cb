"""Fused kernels round the very numbers that they would give unrounded."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.backends.numba.pending import Pending
from nanochat.backends.numba.products import activation, launching
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.streams import mhc
from tests.backends.leaves import normal

SHAPES = [(1, 128, 128), (3, 1280, 128), (65, 256, 256), (2, 33, 11), (4, 7, 7), (1, 600, 600)]
shaped = pytest.mark.parametrize(("tokens", "columns", "block"), SHAPES, ids=str)

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
EPS = 1e-6


def rounded(x: NDArray[np.float32], block: int) -> Arrays:
    """What `quantize` makes of x."""
    result = launching.rounded(Launcher(1), Pending.of(x), block)
    return result.codes, result.sums, result.scales


def poisoned(arrays: Arrays) -> Arrays:
    codes, sums, scales = (np.full_like(array, 77) for array in arrays)
    return codes, sums, scales


def assert_equal(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> None:
    for e, f in zip(expected, found, strict=True):
        np.testing.assert_array_equal(e, f)


@shaped
@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("rows", ["one", "each"])
def test_blend_norm_round(rows: str, n: int, tokens: int, columns: int, block: int) -> None:
    streams, gain = normal(tokens, n, columns), normal(columns, seed=1)
    read = normal(1 if rows == "one" else tokens, n, seed=2)
    u, normed = (np.full((tokens, columns), np.nan, np.float32) for _ in range(2))
    mhc.blend(streams, read, u, 0, tokens)
    activation.rms_norm(u, gain, EPS, normed, 0, tokens)
    expected = rounded(normed, block)
    y, found = np.full_like(u, np.nan), poisoned(expected)

    activation.blend_norm_round(streams, read, gain, EPS, y, block, *found, 0, tokens)

    assert_equal([normed, *expected], [y, *found])


@shaped
def test_norm_round(tokens: int, columns: int, block: int) -> None:
    x, gain = normal(tokens, columns), normal(columns, seed=1)
    normed = np.full_like(x, np.nan)
    activation.rms_norm(x, gain, EPS, normed, 0, tokens)
    expected = rounded(normed, block)
    y, found = np.full_like(x, np.nan), poisoned(expected)

    activation.norm_round(x, gain, EPS, y, block, *found, 0, tokens)

    assert_equal([normed, *expected], [y, *found])


@shaped
@pytest.mark.parametrize("name", ["swiglu", "relu2_glu"])
def test_gated_activations(name: str, tokens: int, columns: int, block: int) -> None:
    x, up = normal(tokens, columns) * 4, normal(tokens, columns, seed=1)
    plain = np.full_like(x, np.nan)
    getattr(activation, name)(x.ravel(), up.ravel(), plain.ravel(), 0, x.size)
    expected = rounded(plain, block)
    y, found = np.full_like(x, np.nan), poisoned(expected)

    getattr(activation, f"{name}_round")(x, up, y, block, *found, 0, tokens)

    assert_equal([plain, *expected], [y, *found])


@shaped
def test_relu2_round(tokens: int, columns: int, block: int) -> None:
    x = normal(tokens, columns) * 4
    plain = np.full_like(x, np.nan)
    activation.relu2(x.ravel(), plain.ravel(), 0, x.size)
    expected = rounded(plain, block)
    y, found = np.full_like(x, np.nan), poisoned(expected)

    activation.relu2_round(x, y, block, *found, 0, tokens)

    assert_equal([plain, *expected], [y, *found])


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_a_row_that_is_not_finite_spoils_no_other(value: float) -> None:
    x, gain = normal(5, 256), normal(256, seed=1)
    x[2, 7] = value
    normed = np.full_like(x, np.nan)
    activation.rms_norm(x, gain, EPS, normed, 0, 5)
    expected = rounded(normed, 128)
    y, found = np.full_like(x, np.nan), poisoned(expected)

    activation.norm_round(x, gain, EPS, y, 128, *found, 0, 5)

    assert_equal([normed, *expected], [y, *found])
    assert np.isfinite(found[-1]).all(axis=1).tolist() == [True, True, False, True, True]


def test_rows_cut_into_their_blocks_are_rounded_alike() -> None:
    x, up = normal(3, 640), normal(3, 640, seed=1)
    whole = np.full_like(x, np.nan)
    activation.swiglu(x.ravel(), up.ravel(), whole.ravel(), 0, x.size)
    expected = rounded(whole, 128)
    y, found = np.full((15, 128), np.nan, np.float32), poisoned(expected)
    codes, sums, scales = (
        array.reshape(15, array.shape[1] // 5, *array.shape[2:]) for array in found
    )

    activation.swiglu_round(
        x.reshape(15, 128), up.reshape(15, 128), y, 128, codes, sums, scales, 0, 15
    )

    assert_equal([whole.reshape(15, 128), *expected], [y, *found])
