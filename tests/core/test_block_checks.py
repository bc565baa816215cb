"""What is no ternary matrix is refused with its place, and zeros are counted as the weights that they make."""

from typing import Any

import numpy as np
import pytest

from nanochat import ternary
from nanochat.blocks.checks import (
    count_zeros,
    require_scales,
    share_of_zeros,
    zero_blocks,
)
from nanochat.errors import NumericError

# Rows, blocks of a row and columns of a block: of Q2_0, PQ2_0 and TQ2_0, and of more rows than are looked at at once.
SHAPES = [(1, 1, 64), (7, 3, 128), (5, 2, 256), (4099, 1, 128)]


def codes_of(rows: int, blocks: int, columns: int) -> Any:
    return np.random.default_rng(0).integers(-1, 2, (rows, blocks, columns)).astype(np.int8)


def packed_of(codes: Any) -> Any:
    """The packed codes behind two bytes that are none, as they lie in a file."""
    rows, blocks, columns = codes.shape
    data = np.full((rows, blocks, 2 + columns // 4), 0xFF, np.uint8)
    data[:, :, 2:] = ternary.pack(codes.reshape(rows, -1)).reshape(rows, blocks, -1)
    return data[:, :, 2:]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zeros_are_counted_by_block(shape: tuple[int, int, int]) -> None:
    codes = codes_of(*shape)

    counts = count_zeros(packed_of(codes), name="x")

    assert np.array_equal(counts, (codes == 0).sum(axis=2))


def test_a_block_of_256_zeros_is_counted_whole() -> None:
    counts = count_zeros(packed_of(np.zeros((2, 3, 256), np.int8)), name="x")

    assert (counts == 256).all()


@pytest.mark.parametrize("bits", [0b11, 0b1100, 0b11_0000, 0b1100_0000])
def test_any_pair_of_threes_is_refused_with_its_place(bits: int) -> None:
    packed = packed_of(codes_of(4099, 2, 128))
    packed[4097, 1, 31] = bits

    with pytest.raises(NumericError, match="x has a code 3 in row 4097, columns 128 to 255: "):
        count_zeros(packed, name="x")


@pytest.mark.parametrize("byte", [0b10_10_10_10, 0b01_01_01_01, 0b00_00_00_00, 0b10_01_10_01])
def test_two_digits_that_lie_side_by_side_make_no_three(byte: int) -> None:
    codes = ternary.unpack(np.full((1, 16), byte, np.uint8), columns=64)

    counts = count_zeros(np.full((1, 1, 16), byte, np.uint8), name="x")

    assert counts.tolist() == [[int((codes == 0).sum())]]


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -0.5, -np.nan, -(2.0**-24)])
def test_a_scale_that_is_not_finite_or_negative_is_refused_with_its_place(scale: float) -> None:
    scales = np.ones((3, 4), np.float16)
    scales[2, 1] = scale

    with pytest.raises(NumericError, match=r"x has the scale .* in row 2, block 1: "):
        require_scales(scales, name="x")


def test_scales_of_0_and_the_smallest_and_largest_are_legal() -> None:
    require_scales(np.array([[0.0, -0.0, 2.0**-24, 65504.0]], np.float16), name="x")


def test_a_block_is_of_zeros_if_its_codes_or_its_scale_are() -> None:
    counts = np.array([[128, 128, 40, 40, 127]], np.uint16)
    scales = np.array([[0.5, 0, 0, -0.0, 0.5]], np.float16)

    assert zero_blocks(counts, scales, columns=128).tolist() == [[True, True, True, True, False]]


def test_the_share_of_zeros_is_that_of_the_weights() -> None:
    codes, scales = codes_of(7, 3, 128), np.ones((7, 3), np.float16)
    scales[2:4] = 0
    weights = codes * scales[:, :, None]

    share = share_of_zeros(count_zeros(packed_of(codes), name="x"), scales, columns=128)

    assert share == (weights == 0).mean()
