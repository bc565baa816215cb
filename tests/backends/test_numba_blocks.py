"""The blocks of other programs' files are laid out from where they lie, as the matrix that they hold would be."""

import dataclasses
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.backends.numba.products import blocks
from nanochat.backends.numba.products.packing import TiledLinear, prepare_leaf
from nanochat.backends.numba.products.trits import CodeLayout
from nanochat.backends.numba.runtime.memory import WeightMemory
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.blocks.plain import plain
from nanochat.errors import NumericError
from nanochat.weights import Stored, TernaryBlocks
from tests.parity.blocks import KINDS, Kind, damaged, in_blocks, kind_of

pytestmark = pytest.mark.usefixtures("all_cores")

every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
every_layout = pytest.mark.parametrize("layout", ["two_bits", "five_trits"])
every_thread = pytest.mark.parametrize("threads", [1, 2])


def laid(leaf: Stored, layout: CodeLayout, threads: int = 1) -> TiledLinear:
    found = prepare_leaf("leaf", leaf, WeightMemory(), layout, threads=threads)
    assert isinstance(found, TiledLinear)
    return found


def same(found: TiledLinear, expected: TiledLinear) -> bool:
    shapes = (found.shape, found.activation_block), (expected.shape, expected.activation_block)
    return (
        shapes[0] == shapes[1]
        and np.array_equal(found.codes, expected.codes)
        and np.array_equal(found.scales, expected.scales)
    )


def refusal(leaf: TernaryBlocks, layout: CodeLayout) -> str:
    with pytest.raises(NumericError) as caught:
        laid(leaf, layout, threads=2)
    return str(caught.value)


def plain_refusal(leaf: TernaryBlocks) -> str:
    with pytest.raises(NumericError) as caught:
        plain(leaf)
    return str(caught.value)


@every_kind
@every_layout
@every_thread
@pytest.mark.parametrize("rows", [1, LANES, 37])
def test_blocks_are_laid_out_as_the_matrix_that_they_hold(
    kind: Kind, layout: CodeLayout, threads: int, rows: int
) -> None:
    leaf, expected = in_blocks(kind, rows, 4)

    assert same(laid(leaf, layout, threads), laid(expected, layout))


@every_layout
@every_thread
def test_a_matrix_of_several_pieces_is_whole(
    layout: CodeLayout, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaf, expected = in_blocks(kind_of("PQ2_0"), 1031, 2)
    whole = laid(expected, layout)
    # Of three tiles at a time.
    monkeypatch.setattr(blocks, "_PIECE", 3 * LANES * leaf.codes[0].nbytes)

    assert same(laid(leaf, layout, threads), whole)


@every_layout
@pytest.mark.parametrize("weight_block", [64, 128, 512])
def test_scales_are_shared_or_repeated(layout: CodeLayout, weight_block: int) -> None:
    leaf, expected = in_blocks(kind_of("PQ2_0"), 37, 4, weight_block=weight_block)

    assert same(laid(leaf, layout), laid(expected, layout))


@pytest.mark.parametrize("name", ["I2_S", "TQ1_0", "Q2_0"])
def test_a_factor_multiplies_scales_once(name: str) -> None:
    leaf, expected = in_blocks(kind_of(name), 37, 4, factor=0.0123)

    assert same(laid(leaf, "two_bits"), laid(expected, "two_bits"))


@pytest.mark.parametrize("block", [40, 64, 512])
def test_any_activation_block_is_laid_out(block: int) -> None:
    # Blocks of 40 columns are no whole words.
    leaf, expected = in_blocks(kind_of("Q2_0"), 37, 40, activation_block=block)

    assert same(laid(leaf, "two_bits"), laid(expected, "two_bits"))


@every_layout
@pytest.mark.parametrize("name", ["Q2_0", "PQ2_0", "MLX", "TQ2_0", "I2_S"])
def test_a_code_3_is_refused_as_in_plain(name: str, layout: CodeLayout) -> None:
    leaf = damaged(kind_of(name), byte=(5, 0b00_11_00_00))

    assert refusal(leaf, layout) == plain_refusal(leaf)


@every_layout
@pytest.mark.parametrize("name", ["TQ1_0", "PTQ1_0"])
def test_a_fifth_digit_in_a_byte_of_four_is_refused_as_in_plain(
    name: str, layout: CodeLayout
) -> None:
    leaf = damaged(kind_of(name), byte=(-1, 2))

    assert refusal(leaf, layout) == plain_refusal(leaf)


@every_kind
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -0.5])
def test_a_scale_that_is_not_finite_or_negative_is_refused_as_in_plain(
    kind: Kind, scale: float
) -> None:
    leaf = damaged(kind, scale=scale)

    assert refusal(leaf, "two_bits") == plain_refusal(leaf)


def test_a_factor_that_leaves_float16_is_refused_as_in_plain() -> None:
    leaf, _ = in_blocks(kind_of("MLX"), 3, 2, factor=1e9)

    assert refusal(leaf, "two_bits") == plain_refusal(leaf)


def test_scales_that_differ_where_one_is_asked_for_are_refused_as_in_plain() -> None:
    leaf, _ = in_blocks(kind_of("PQ2_0"), 3, 4)
    leaf = dataclasses.replace(leaf, weight_block=256)

    assert refusal(leaf, "two_bits") == plain_refusal(leaf)


def test_a_scale_of_our_own_that_is_not_finite_is_refused() -> None:
    _, leaf = in_blocks(kind_of("PQ2_0"), 37, 2)
    leaf.scales[30, 1] = np.nan

    with pytest.raises(NumericError, match=r"the scales of leaf holds nan at \[30, 1\]"):
        laid(leaf, "two_bits")


def resident(mapped: Any) -> int:
    """Kilobytes of the file that are in this process's memory."""
    address = f"{mapped.ctypes.data:x}-"
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.startswith(address))
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory is used")
@pytest.mark.parametrize("name", ["PQ2_0", "TQ1_0"])
def test_no_page_of_the_file_stays(name: str, tmp_path: Path) -> None:
    kind = kind_of(name)
    leaf, expected = in_blocks(kind, 2048, 16)
    assert leaf.codes.base is not None
    rows, count, size = leaf.codes.shape
    (tmp_path / "file").write_bytes(np.asarray(leaf.codes.base).tobytes())
    mapped = np.memmap(tmp_path / "file", np.uint8, mode="r")
    data = np.asarray(mapped).reshape(rows, count, size + 2)
    codes = data[:, :, 2:] if kind.scale_first else data[:, :, :-2]
    ends = data[:, :, :2] if kind.scale_first else data[:, :, -2:]
    leaf = dataclasses.replace(leaf, codes=codes, scales=ends.view(np.float16)[:, :, 0])

    found = laid(leaf, "two_bits")

    # Of pages that a neighbour may need, at either end.
    assert resident(mapped) <= 8
    assert same(found, laid(expected, "two_bits"))


def test_nothing_is_allocated_but_the_tiles() -> None:
    leaf, _ = in_blocks(kind_of("TQ1_0"), 2048, 16)
    memory = WeightMemory()
    # Compiled kernels, and tables.
    found = laid(leaf, "two_bits", 2)
    tracemalloc.start()

    prepare_leaf("leaf", leaf, memory, threads=2)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Tiles are in memory that is not traced.
    assert found.nbytes > 2 * 2**20
    assert peak < 2**16
