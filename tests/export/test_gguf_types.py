"""The block formats of GGUF hold codes and scales exactly, and mean to other readers what they mean to us."""

from typing import Any

import gguf
import numpy as np
import pytest

from nanochat import ternary
from nanochat.errors import FormatError, NumericError, ShapeError
from nanochat.export.gguf.types import (
    F16,
    Q2_0,
    TQ1_0,
    TQ2_0,
    TYPES,
    TensorType,
    pack_q8_0,
    pack_ternary,
    unpack_q8_0,
    unpack_ternary,
)

KINDS = [TQ2_0, TQ1_0, Q2_0, F16]
SHAPES = [(1, 256, 1), (7, 768, 3), (3, 512, 1)]


def name_of(kind: TensorType) -> str:
    return kind.name


def codes_and_scales(rows: int, columns: int, scales: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    codes = generator.integers(-1, 2, (rows, columns)).astype(np.int8)
    return codes, generator.uniform(0.01, 2, (rows, scales)).astype(np.float16)


@pytest.mark.parametrize(("rows", "columns", "scales"), SHAPES)
@pytest.mark.parametrize("kind", [TQ2_0, TQ1_0, F16], ids=name_of)
def test_a_format_means_to_the_library_what_it_means_to_us(
    kind: TensorType, rows: int, columns: int, scales: int
) -> None:
    codes, factors = codes_and_scales(rows, columns, scales)

    packed = pack_ternary(kind, codes, factors)

    values = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(kind.number))
    assert np.array_equal(values, ternary.dequantize(codes, factors))


@pytest.mark.parametrize("kind", [TQ2_0, TQ1_0], ids=name_of)
def test_a_format_has_the_library_s_bits(kind: TensorType) -> None:
    codes, factors = codes_and_scales(5, 512, 2)

    packed = pack_ternary(kind, codes, factors)

    values = ternary.dequantize(codes, factors)
    expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType(kind.number))
    assert np.array_equal(packed, expected)


def test_q2_0_has_a_scale_and_then_four_codes_to_a_byte_lowest_bits_first() -> None:
    codes = np.zeros((1, 64), np.int8)
    codes[0, :6] = [-1, 0, 1, 1, 1, -1]

    packed = pack_ternary(Q2_0, codes, np.array([[0.5]], np.float16))

    assert packed.tolist() == [[0x00, 0x38, 0b10_10_01_00, 0b01_01_00_10, *[0b01_01_01_01] * 14]]


@pytest.mark.parametrize(("rows", "columns", "scales"), SHAPES)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_a_matrix_is_unpacked_as_it_was_packed(
    kind: TensorType, rows: int, columns: int, scales: int
) -> None:
    codes, factors = codes_and_scales(rows, columns, scales)
    packed = pack_ternary(kind, codes, factors)

    again, factors_again = unpack_ternary(kind, packed, num_scales=scales, name="x")

    assert packed.shape == (rows, kind.num_bytes((columns,)))
    assert np.array_equal(again, codes)
    assert np.array_equal(factors_again, factors)


@pytest.mark.parametrize("kind", [Q2_0, F16], ids=name_of)
def test_small_blocks_hold_a_scale_for_128_columns(kind: TensorType) -> None:
    codes, factors = codes_and_scales(3, 384, 3)

    packed = pack_ternary(kind, codes, factors)

    again = unpack_ternary(kind, packed, num_scales=3, name="x")
    assert np.array_equal(again[0], codes)
    assert np.array_equal(again[1], factors)


def test_a_block_of_zeros_in_float16_has_the_smallest_scale() -> None:
    packed = pack_ternary(F16, np.zeros((1, 256), np.int8), np.array([[0.5]], np.float16))

    codes, scales = unpack_ternary(F16, packed, num_scales=1, name="x")

    assert not codes.any()
    assert scales.tolist() == [[2.0**-14]]


@pytest.mark.parametrize("kind", [TQ2_0, TQ1_0], ids=name_of)
def test_large_blocks_refuse_scales_of_half_a_block(kind: TensorType) -> None:
    with pytest.raises(ShapeError, match="a scale for every 128 columns"):
        pack_ternary(kind, *codes_and_scales(2, 512, 4))


@pytest.mark.parametrize(("kind", "columns"), [(TQ2_0, 320), (TQ1_0, 320), (Q2_0, 96)], ids=str)
def test_columns_that_are_no_whole_blocks_are_refused(kind: TensorType, columns: int) -> None:
    with pytest.raises(ShapeError, match=f"{columns} columns into blocks of {kind.columns}"):
        pack_ternary(kind, *codes_and_scales(2, columns, 1))


@pytest.mark.parametrize(("kind", "byte"), [(TQ2_0, 7), (Q2_0, 2)], ids=str)
def test_a_pair_of_bits_that_stands_for_no_code_is_refused(kind: TensorType, byte: int) -> None:
    packed = pack_ternary(kind, *codes_and_scales(2, 512, 2))
    packed[1, byte] = 0b11

    with pytest.raises(NumericError, match="x holds the byte 0x03 at"):
        unpack_ternary(kind, packed, num_scales=2, name="x")


def test_a_fifth_digit_where_tq1_0_has_four_is_refused() -> None:
    packed = pack_ternary(TQ1_0, *codes_and_scales(2, 512, 2))
    packed[1, 51] += 2

    with pytest.raises(NumericError, match="x has a digit where a block of TQ1_0 ends"):
        unpack_ternary(TQ1_0, packed, num_scales=2, name="x")


def test_float16_numbers_of_two_magnitudes_are_refused() -> None:
    packed = pack_ternary(F16, *codes_and_scales(2, 512, 2))

    with pytest.raises(
        NumericError, match=r"x holds .* a ternary block has zeros and one magnitude"
    ):
        unpack_ternary(F16, packed, num_scales=1, name="x")


@pytest.mark.parametrize("kind", [TQ2_0, TQ1_0, Q2_0], ids=name_of)
def test_blocks_that_should_share_a_scale_must(kind: TensorType) -> None:
    packed = pack_ternary(kind, *codes_and_scales(2, 512, 2))

    with pytest.raises(FormatError, match=r"x has scales that differ .* in row 0"):
        unpack_ternary(kind, packed, num_scales=1, name="x")


def test_q8_0_means_to_the_library_what_it_means_to_us() -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (7, 96)).astype(np.int8)
    scales = np.linspace(0.001, 3, 7).astype(np.float16)

    packed = pack_q8_0(codes, scales)
    again, scales_again = unpack_q8_0(packed, name="x")

    values = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(values, codes.astype(np.float32) * scales.astype(np.float32)[:, None])
    assert np.array_equal(again, codes)
    assert np.array_equal(scales_again, scales)


def test_the_types_are_the_library_s_and_one_more() -> None:
    library = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}

    assert {number: kind.name for number, kind in TYPES.items()} == library | {42: "Q2_0"}
    assert (Q2_0.columns, Q2_0.bytes) == (64, 18)
