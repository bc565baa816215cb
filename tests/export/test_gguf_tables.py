"""Tables of small integers are the numbers that the gguf library makes of the same bytes, to the last bit."""

from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from nanochat.errors import NumericError
from nanochat.export.gguf.tables import COLUMNS_OF_SCALE, half_view, integer_table
from nanochat.export.gguf.types import BF16, F16, Q4_0, Q6_K, Q8_0, TensorType

KINDS = [Q8_0, Q4_0, Q6_K]
SIZES = [(1, 1), (7, 3), (1031, 2), (3, 700)]


def name_of(kind: TensorType) -> str:
    return kind.name


def random_bytes(kind: TensorType, rows: int, blocks: int) -> Any:
    """Any bytes, with scales of any sign that are finite, and no code -128."""
    generator = np.random.default_rng(0)
    data = generator.integers(0, 256, (rows, blocks, kind.bytes), np.uint8)
    scales = generator.standard_normal((rows, blocks, 1)).astype("<f2").view(np.uint8)
    if kind == Q6_K:
        data[:, :, 208:] = scales
    else:
        data[:, :, :2] = scales
    if kind == Q8_0:
        codes = data[:, :, 2:]
        codes[codes == 0x80] = 0x81
    return data.reshape(rows, -1)


@pytest.mark.parametrize(("rows", "blocks"), SIZES)
@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_codes_times_scales_are_the_library_s_numbers(
    kind: TensorType, rows: int, blocks: int
) -> None:
    data = random_bytes(kind, rows, blocks)

    codes, scales = integer_table(kind, data, name="x")

    columns = COLUMNS_OF_SCALE[kind]
    assert codes.dtype == np.int8
    assert codes.shape == (rows, blocks * kind.columns)
    assert scales.shape == (rows, blocks * kind.columns // columns)
    values = codes.astype(np.float32) * np.repeat(scales.astype(np.float32), columns, axis=1)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.number))
    assert np.array_equal(values.view(np.uint32), expected.view(np.uint32))


def test_a_block_of_q4_0_by_hand() -> None:
    # A scale of -0.5, and then columns 0 and 16, 1 and 17.
    data = np.array([[0x00, 0xB8, 0xF0, 0x18, *[0x88] * 14]], np.uint8)

    codes, scales = integer_table(Q4_0, data, name="x")

    assert scales.tolist() == [[-0.5]]
    assert {n: int(codes[0, n]) for n in np.flatnonzero(codes[0])} == {0: -8, 16: 7, 17: -7}


def test_a_block_of_q6_k_by_hand() -> None:
    data = np.zeros((1, 210), np.uint8)
    # Column 128 + 64 + 5 has the upper half of byte 64 + 5, and bits 4 and 5 of byte 128 + 32 + 5: 0b11_1010 - 32.
    data[0, 64 + 5] = 0xA0
    data[0, 128 + 32 + 5] = 0b11 << 4
    # It is in the thirteenth group of 16.
    data[0, 192 + 12] = 0xFD
    data[0, 208:] = [0x00, 0x38]

    codes, scales = integer_table(Q6_K, data, name="x")

    assert codes[0, 197] == 26
    assert (np.delete(codes[0], 197) == -32).all()
    assert scales.dtype == np.float32
    assert np.flatnonzero(scales[0]).tolist() == [12]
    assert scales[0, 12] == -1.5


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_finite_is_refused_with_its_place(
    kind: TensorType, scale: float
) -> None:
    data = random_bytes(kind, 1031, 2)
    block = data.reshape(1031, 2, kind.bytes)[1029, 1]
    place = slice(208, 210) if kind == Q6_K else slice(0, 2)
    block[place] = np.array([scale], "<f2").view(np.uint8)

    with pytest.raises(
        NumericError, match=rf"x has the scale .* in row 1029, columns {kind.columns} to"
    ):
        integer_table(kind, data, name="x")


def test_the_code_minus_128_is_refused_with_its_place() -> None:
    data = random_bytes(Q8_0, 1031, 2)
    data[1029, 34 + 2 + 5] = 0x80

    with pytest.raises(NumericError, match="x has the code -128 in row 1029, column 37: codes lie"):
        integer_table(Q8_0, data, name="x")


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_any_bytes_are_a_table_or_refused(kind: TensorType) -> None:
    generator = np.random.default_rng(0)
    refused = 0

    for _ in range(10_000):
        data = generator.integers(0, 256, (1, kind.bytes), np.uint8)
        try:
            codes, scales = integer_table(kind, data, name="x")
        except NumericError:
            refused += 1
        else:
            assert codes.min() >= -127
            assert np.isfinite(scales).all()

    assert 0 < refused < 10_000


@pytest.mark.parametrize(("kind", "dtype"), [(F16, np.float16), (BF16, ml_dtypes.bfloat16)])
def test_numbers_of_16_bits_are_views_of_the_file(kind: TensorType, dtype: Any) -> None:
    data = np.random.default_rng(0).integers(0, 256, (3, 128), np.uint8)

    values = half_view(kind, data)

    assert np.shares_memory(values, data)
    assert values.dtype == dtype
    assert values.shape == (3, 64)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.number))
    np.testing.assert_array_equal(values.astype(np.float32), expected)
