"""The blocks of other programs' files are laid out from where they lie, as the matrix that they hold would be."""

import ctypes
import mmap
import re
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from nanochat.backends.numba.products import blocks
from nanochat.backends.numba.products.packing import TiledLinear, prepare_leaf
from nanochat.backends.numba.products.trit_codes import CodeLayout, bytes_of
from nanochat.backends.numba.runtime.memory import WeightMemory
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.blocks.plain import plain
from nanochat.errors import NumericError
from nanochat.weights import Stored, TernaryBlocks
from tests.parity.blocks import KINDS, Kind, damaged, in_blocks, kind_of

pytestmark = pytest.mark.usefixtures("all_cores")

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc and mprotect are Linux's")
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
every_layout = pytest.mark.parametrize("layout", get_args(CodeLayout))
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
def test_lanes_without_a_row_are_0(layout: CodeLayout) -> None:
    leaf, _ = in_blocks(kind_of("PQ2_0"), LANES + 5, 2)

    found = laid(leaf, layout)

    assert (found.scales[1, :, 5:] == 0).all()
    zero = 0x55 if layout == "two_bits" else bytes_of(layout)[0b01_01_01_01_01]
    # In trits, the seventh is in two bits.
    words = found.codes[1].reshape(-1, LANES, 4)[:6, 5:]
    assert (words == zero).all()


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
    leaf = replace(leaf, weight_block=256)

    assert refusal(leaf, "two_bits") == plain_refusal(leaf)


def test_a_scale_of_our_own_that_is_not_finite_is_refused() -> None:
    _, leaf = in_blocks(kind_of("PQ2_0"), 37, 2)
    leaf.scales[30, 1] = np.nan

    with pytest.raises(NumericError, match=r"the scales of leaf holds nan at \[30, 1\]"):
        laid(leaf, "two_bits")


def in_file(kind: Kind, leaf: TernaryBlocks, path: Path, *, times: int = 1) -> TernaryBlocks:
    """The same matrix, with all rows of the file so many times, of a mapped file."""
    assert leaf.codes.base is not None
    rows, count, size = leaf.codes.shape
    with path.open("wb") as file:
        for _ in range(times):
            file.write(np.asarray(leaf.codes.base).tobytes())
    data = np.asarray(np.memmap(path, np.uint8, mode="r")).reshape(times * rows, count, size + 2)
    codes = data[:, :, 2:] if kind.scale_first else data[:, :, :-2]
    ends = data[:, :, :2] if kind.scale_first else data[:, :, -2:]
    order = leaf.rows if times == 1 else np.arange(times * rows)
    return replace(leaf, codes=codes, scales=ends.view(np.float16)[:, :, 0], rows=order)


def kilobytes(path: str, name: str) -> int:
    """What the system says of this process behind a name, or of a mapping behind its first line."""
    return int(re.findall(name + r":\s*(\d+)", Path(path).read_text())[0])


@on_linux
@pytest.mark.parametrize("name", ["PQ2_0", "TQ1_0"])
def test_no_page_of_the_file_stays(name: str, tmp_path: Path) -> None:
    kind = kind_of(name)
    leaf, expected = in_blocks(kind, 2048, 16)
    leaf = in_file(kind, leaf, tmp_path / "file")

    found = laid(leaf, "two_bits")

    pages = Path("/proc/self/smaps").read_text().split(str(tmp_path / "file"))[1]
    # Of two pages that a neighbour may need, at either end.
    assert int(re.findall(r"Rss:\s*(\d+)", pages)[0]) <= 8
    assert same(found, laid(expected, "two_bits"))


@on_linux
def test_a_large_matrix_is_never_in_memory_twice(tmp_path: Path) -> None:
    kind = kind_of("PQ2_0")
    leaf, _ = in_blocks(kind, 30, 256)
    laid(leaf, "two_bits", 2)
    leaf = in_file(kind, leaf, tmp_path / "file", times=256)
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("/proc/self/status", "VmRSS")

    found = laid(leaf, "two_bits", 2)

    peak = 1024 * (kilobytes("/proc/self/status", "VmHWM") - before)
    assert found.nbytes > 64 * 2**20
    assert peak < found.nbytes + 32 * 2**20


@on_linux
@every_kind
@every_layout
def test_no_byte_is_read_behind_the_last(kind: Kind, layout: CodeLayout) -> None:
    leaf, expected = in_blocks(kind, 37, 4)
    size = leaf.codes.nbytes
    begin = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = np.frombuffer(mmap.mmap(-1, begin + mmap.PAGESIZE), np.uint8)
    # Whoever reads the last page is ended by the system.
    behind = ctypes.c_void_p(memory.ctypes.data + begin)
    assert ctypes.CDLL(None).mprotect(behind, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    codes = memory[begin - size : begin].reshape(leaf.codes.shape)
    codes[:] = leaf.codes

    assert same(laid(replace(leaf, codes=codes), layout), laid(expected, layout))


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
