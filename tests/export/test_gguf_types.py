"""The block formats of GGUF hold codes and scales exactly, and mean to other readers what they mean to us."""

from typing import Any

import gguf
import numpy as np
import pytest

from nanochat import ternary
from nanochat.blocks.checks import count_zeros, require_scales
from nanochat.errors import FormatError, NumericError, ShapeError
from nanochat.export.gguf.types import (
    F16,
    I2_S,
    PQ2_0,
    PTQ1_0,
    Q1_0,
    Q2_0,
    TQ1_0,
    TQ2_0,
    TYPES,
    TensorType,
    block_bytes,
    dequantize_q2_0,
    pack_q8_0,
    pack_ternary,
    packed_blocks,
    packed_i2_s,
    unpack_q8_0,
    unpack_ternary,
)

# Types and masks of random bytes of which a block has a pair of 3, all but surely.
NEVER_LEGAL = [(TQ2_0, 0xFF), (Q2_0, 0xFF), (PQ2_0, 0xFF)]
KINDS = [TQ2_0, TQ1_0, Q2_0, PQ2_0, PTQ1_0, F16]
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


@pytest.mark.parametrize("kind", [Q2_0, PQ2_0, PTQ1_0, F16], ids=name_of)
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


@pytest.mark.parametrize(
    ("kind", "columns"),
    [(TQ2_0, 320), (TQ1_0, 320), (Q2_0, 96), (PQ2_0, 192), (PTQ1_0, 192)],
    ids=str,
)
def test_columns_that_are_no_whole_blocks_are_refused(kind: TensorType, columns: int) -> None:
    with pytest.raises(ShapeError, match=f"{columns} columns into blocks of {kind.columns}"):
        pack_ternary(kind, *codes_and_scales(2, columns, 1))


@pytest.mark.parametrize(
    ("kind", "byte", "columns"),
    [
        (TQ2_0, 7, "0 to 255"),
        (Q2_0, 2, "0 to 63"),
        (Q2_0, 35, "64 to 127"),
        (PQ2_0, 2 * 34 + 33, "256 to 383"),
    ],
    ids=str,
)
def test_a_pair_of_bits_that_stands_for_no_code_is_refused(
    kind: TensorType, byte: int, columns: str
) -> None:
    packed = pack_ternary(kind, *codes_and_scales(2, 512, 2))
    packed[1, byte] = 0b11

    with pytest.raises(NumericError, match=f"x has a code 3 in row 1, columns {columns}: "):
        unpack_ternary(kind, packed, num_scales=2, name="x")


@pytest.mark.parametrize(("kind", "byte"), [(TQ1_0, 51), (PTQ1_0, 24), (PTQ1_0, 25)], ids=str)
def test_a_fifth_digit_where_a_byte_of_trits_has_four_is_refused(
    kind: TensorType, byte: int
) -> None:
    packed = pack_ternary(kind, *codes_and_scales(2, 512, 2))
    packed[1, kind.bytes + byte] += 2

    with pytest.raises(NumericError, match="x has a digit where a block ends, in row 1, block 1: "):
        packed_blocks(kind, packed, name="x")


def test_float16_numbers_of_two_magnitudes_are_refused() -> None:
    packed = pack_ternary(F16, *codes_and_scales(2, 512, 2))

    with pytest.raises(
        NumericError, match=r"x holds .* a ternary block has zeros and one magnitude"
    ):
        unpack_ternary(F16, packed, num_scales=1, name="x")


@pytest.mark.parametrize("kind", [TQ2_0, TQ1_0, Q2_0, PQ2_0, PTQ1_0], ids=name_of)
def test_blocks_that_should_share_a_scale_must(kind: TensorType) -> None:
    packed = pack_ternary(kind, *codes_and_scales(2, 512, 2))

    with pytest.raises(FormatError, match=r"x has scales that differ .* in row 0"):
        unpack_ternary(kind, packed, num_scales=1, name="x")


@pytest.mark.parametrize("num_scales", [1, 3])
def test_q8_0_means_to_the_library_what_it_means_to_us(num_scales: int) -> None:
    codes = np.random.default_rng(0).integers(-127, 128, (7, 96)).astype(np.int8)
    scales = np.linspace(0.001, 3, 7 * num_scales).astype(np.float16).reshape(7, -1)

    packed = pack_q8_0(codes, scales)
    again, scales_again = unpack_q8_0(packed, num_scales=num_scales, name="x")

    values = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(values, ternary.dequantize(codes, scales))
    assert np.array_equal(again, codes)
    assert np.array_equal(scales_again, scales)


def test_the_types_are_the_library_s_and_four_more() -> None:
    library = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
    more = {36: "I2_S", 41: "Q1_0", 42: "Q2_0", 142: "PQ2_0", 143: "PTQ1_0"}

    assert {number: kind.name for number, kind in TYPES.items()} == library | more


@pytest.mark.parametrize(
    ("kind", "size"), [(Q2_0, 36), (PQ2_0, 34), (PTQ1_0, 28), (Q1_0, 18), (I2_S, 64)], ids=str
)
def test_a_tensor_of_128_columns_takes_the_bytes_of_its_type(kind: TensorType, size: int) -> None:
    assert kind.num_bytes((1, 128)) == size


def test_i2_s_has_one_scale_for_all_rows() -> None:
    assert I2_S.num_bytes((3, 7, 256)) == 3 * 7 * 64 + 32


# The bytes of a block, worked out by hand from the layouts' descriptions.


@pytest.mark.parametrize("kind", [Q2_0, PQ2_0], ids=name_of)
def test_a_scale_of_a_half_and_four_codes_are_three_bytes(kind: TensorType) -> None:
    codes = np.zeros((1, kind.columns), np.int8)
    codes[0, :4] = [1, 0, -1, 1]

    packed = pack_ternary(kind, codes, np.array([[0.5]], np.float16))

    assert packed[0, :3].tolist() == [0x00, 0x38, 0x86]
    # Zeros are the digit 1.
    assert packed[0, 3:].tolist() == [0x55] * (kind.columns // 4 - 1)


def test_ptq1_0_has_three_parts_of_trits_and_then_a_scale() -> None:
    codes = np.full((1, 128), -1, np.int8)
    codes[0, [0, 16, 32, 48, 64]] = [1, 0, -1, 1, 0]
    codes[0, [82, 90, 98, 106, 114]] = [1, 0, -1, 1, 0]
    codes[0, [121, 123, 125, 127]] = [1, -1, 0, 0]

    packed = pack_ternary(PTQ1_0, codes, np.array([[0.5]], np.float16))

    assert packed[0, 0] == 0xCF
    assert packed[0, 16 + 2] == 0xCF
    assert packed[0, 24 + 1] == 0xB8
    assert packed[0, 26:].tolist() == [0x00, 0x38]
    assert np.flatnonzero(packed[0]).tolist() == [0, 18, 25, 27]


def test_a_bit_of_q1_0_is_one_or_minus_one() -> None:
    data = np.zeros((1, 18), np.uint8)
    data[0, :4] = [0x00, 0x38, 0b0000_0101, 0b1000_0000]

    packed, scales = packed_blocks(Q1_0, data, name="x")

    codes = ternary.unpack(packed.reshape(1, -1), columns=128)
    assert np.flatnonzero(codes[0] == 1).tolist() == [0, 2, 15]
    assert (codes != 0).all()
    assert scales.tolist() == [[0.5]]


def test_i2_s_has_four_quarters_of_128_columns_highest_bits_first_and_a_scale_behind_all() -> None:
    data = np.full((2, 64), 0b01_01_01_01, np.uint8)
    # Byte 3 of the second block: columns 131, 163, 195, 227.
    data[1, 32 + 3] = 0b10_00_01_10
    tail = np.full(32, 0xFF, np.uint8)
    tail[:4] = [0x00, 0x00, 0x40, 0x3F]
    data[0] = 0

    packed, scale = packed_i2_s(data, tail, name="x")

    codes = ternary.unpack(packed.reshape(2, -1), columns=256)
    assert (codes[0] == -1).all()
    assert np.flatnonzero(codes[1]).tolist() == [131, 163, 227]
    assert codes[1, [131, 163, 227]].tolist() == [1, -1, 1]
    assert scale == np.float32(0.75)


def trit(byte: int, digit: int) -> int:
    """The digit, shifted out of a byte."""
    number: int = (byte * 3**digit & 255) * 3 >> 8
    return number - 1


def test_every_weight_of_ptq1_0_is_where_its_table_says() -> None:
    data = np.random.default_rng(0).integers(0, 256, (3, 2 * 28), np.uint8)
    blocks = data.reshape(3, 2, 28)
    # Four digits: those whose fifth is 0.
    blocks[:, :, 24:26] = np.array([0, 4, 184, 238], np.uint8)[blocks[:, :, 24:26] & 3]
    expected = np.zeros((3, 2, 128), np.int8)
    for place in np.ndindex(3, 2):
        block = blocks[place].tolist()
        for n in range(5):
            expected[place][16 * n : 16 * n + 16] = [trit(b, n) for b in block[:16]]
            expected[place][80 + 8 * n : 88 + 8 * n] = [trit(b, n) for b in block[16:24]]
        for n in range(4):
            expected[place][120 + 2 * n : 122 + 2 * n] = [trit(b, n) for b in block[24:26]]

    packed, _ = packed_blocks(PTQ1_0, data, name="x")

    assert np.array_equal(packed, ternary.pack(expected.reshape(6, 128)).reshape(3, 2, 32))


@pytest.mark.parametrize("kind", [TQ1_0, TQ2_0], ids=name_of)
def test_random_bytes_mean_to_the_library_what_they_mean_to_us(kind: TensorType) -> None:
    data = np.random.default_rng(0).integers(0, 256, (5, 3 * kind.bytes), np.uint8)
    blocks = data.reshape(5, 3, kind.bytes)
    # Legal bytes: without a pair 3, or with four digits.
    blocks[:, :, :-2] &= 0xAA if kind == TQ2_0 else 0xFF
    blocks[:, :, -6:-2] &= 0xAA if kind == TQ2_0 else 0
    blocks[:, :, -2:] = np.array([0x00, 0x38], np.uint8)

    codes, scales = unpack_ternary(kind, data, num_scales=3, name="x")

    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.number))
    assert np.array_equal(ternary.dequantize(codes, scales), expected)


@pytest.mark.parametrize("kind", [Q2_0, PQ2_0], ids=name_of)
def test_codes_that_are_our_bytes_are_views_of_the_file(kind: TensorType) -> None:
    codes, factors = codes_and_scales(3, 256, 2)
    data = pack_ternary(kind, codes, factors)

    packed, scales = packed_blocks(kind, data, name="x")

    assert np.shares_memory(packed, data)
    assert np.shares_memory(scales, data)
    assert np.array_equal(packed.reshape(3, -1), ternary.pack(codes))


@pytest.mark.parametrize("kind", [TQ2_0, TQ1_0, Q2_0, PQ2_0, PTQ1_0], ids=name_of)
def test_all_types_have_the_same_packed_bytes(kind: TensorType) -> None:
    codes, factors = codes_and_scales(70, 7 * 256, 7)

    packed, scales = packed_blocks(kind, pack_ternary(kind, codes, factors), name="x")

    assert np.array_equal(packed.reshape(70, -1), ternary.pack(codes))
    assert np.array_equal(scales, np.repeat(factors, 256 // kind.columns, axis=1))


@pytest.mark.parametrize("kind", [TQ2_0, TQ1_0, Q2_0, PQ2_0, PTQ1_0], ids=name_of)
def test_packed_bytes_are_written_as_the_codes_are(kind: TensorType) -> None:
    codes, factors = codes_and_scales(70, 7 * 256, 7)

    written = block_bytes(kind, ternary.pack(codes), factors)

    assert np.array_equal(written, pack_ternary(kind, codes, factors))


def test_rows_are_converted_a_few_at_a_time_with_none_left_out() -> None:
    codes, factors = codes_and_scales(4097, 128, 1)

    packed, _ = packed_blocks(PTQ1_0, pack_ternary(PTQ1_0, codes, factors), name="x")

    assert np.array_equal(packed.reshape(4097, -1), ternary.pack(codes))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_of_i2_s_is_finite_and_positive(scale: float) -> None:
    tail = np.array([scale] * 8, np.float32).view(np.uint8)

    with pytest.raises(NumericError, match="x has the scale"):
        packed_i2_s(np.full((2, 32), 0x56, np.uint8), tail, name="x")


@pytest.mark.parametrize(
    ("byte", "message"),
    [
        (0b01_11_01_00, "x has a code 3 in row 0, columns 0 to 127"),
        (0b00_10_00_10, "x has 0 zeros in 256 codes"),
        (0b01_01_01_01, "x has 256 zeros in 256 codes"),
    ],
)
def test_i2_s_of_what_no_training_makes_is_refused(byte: int, message: str) -> None:
    tail = np.ones(8, np.float32).view(np.uint8)

    with pytest.raises(NumericError, match=message):
        packed_i2_s(np.full((2, 32), byte, np.uint8), tail, name="x")


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_makes_numbers_that_are_not(scale: float) -> None:
    packed = pack_ternary(Q2_0, np.zeros((1, 64), np.int8), np.array([[scale]], np.float16))

    assert np.isnan(dequantize_q2_0(packed)).all()


@pytest.mark.parametrize("kind", [TQ2_0, TQ1_0, Q2_0, PQ2_0, PTQ1_0, Q1_0], ids=name_of)
@pytest.mark.parametrize("mask", [0xFF, 0xAA], ids=["any bytes", "without pairs of 3"])
def test_any_bytes_are_a_ternary_matrix_or_refused(kind: TensorType, mask: int) -> None:
    generator = np.random.default_rng(0)
    outcomes = set()

    for _ in range(10_000):
        data = generator.integers(0, 256, (1, kind.bytes), np.uint8) & np.uint8(mask)
        try:
            packed, scales = packed_blocks(kind, data, name="x")
            count_zeros(packed, name="x")
            require_scales(scales, name="x")
        except NumericError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            ternary.require_legal(packed, "x")
            assert (scales >= 0).all()

    # Of any bytes in pairs, none have no 3.
    assert outcomes == {"refused", "read"} - ({"read"} if (kind, mask) in NEVER_LEGAL else set())


def test_any_bytes_are_i2_s_or_refused() -> None:
    generator = np.random.default_rng(0)
    outcomes = set()

    for _ in range(10_000):
        data = generator.integers(0, 256, (2, 32), np.uint8)
        data[0] &= 0x56
        try:
            packed, scale = packed_i2_s(data[:1], data[1], name="x")
        except NumericError:
            outcomes.add("refused")
        else:
            outcomes.add("read")
            ternary.require_legal(packed, "x")
            assert 0 < scale < np.inf

    assert outcomes == {"refused", "read"}
