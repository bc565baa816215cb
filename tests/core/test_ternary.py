"""The numerics contract, to the last bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nanochat.errors import NumericError, ShapeError
from nanochat.ternary import (
    KV_BLOCK,
    block_products,
    dequantize,
    pack,
    quantize,
    quantize_activations,
    quantize_kv,
    quantize_table,
    recover,
    recover_rows,
    require_legal,
    unpack,
)

# Shared machines are slow at times, and a test must not fail for that.
UNHURRIED = settings(deadline=None, max_examples=60, database=None)

SEEDS = st.integers(0, 2**32 - 1)
ROWS = st.integers(1, 7)
COLUMNS = st.integers(1, 67)
# Weights and inputs of every size that training meets, and far beyond.
EXPONENTS = st.integers(-30, 12)


def normal(seed: int, *shape: int, exponent: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(
        2.0**exponent
    )


def random_codes(seed: int, *shape: int, largest: int = 1) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-largest, largest, shape, np.int8, endpoint=True)


# Packing.


@UNHURRIED
@given(SEEDS, st.integers(0, 7), st.integers(0, 67))
def test_unpack_undoes_pack_for_every_shape_and_tail(seed: int, rows: int, columns: int) -> None:
    codes = random_codes(seed, rows, columns)

    packed = pack(codes)

    assert packed.dtype == np.uint8
    assert packed.shape == (rows, -(-columns // 4))
    assert np.array_equal(unpack(packed, columns=columns), codes)


def test_pack_puts_the_first_code_into_the_lowest_bits() -> None:
    codes = np.array([[-1, 0, 1, 0], [1, 1, 1, -1]], np.int8)

    packed = pack(codes)

    assert packed.tolist() == [[0b01_10_01_00], [0b00_10_10_10]]


def test_pack_fills_a_row_s_tail_with_zero_codes() -> None:
    codes = np.array([[1, 1, 1, 1, -1]], np.int8)

    packed = pack(codes)

    assert packed.tolist() == [[0b10_10_10_10, 0b01_01_01_00]]


@pytest.mark.parametrize("code", [-128, -2, 2, 127])
def test_pack_refuses_a_code_that_is_not_ternary(code: int) -> None:
    codes = np.array([[0, 1, code]], np.int8)

    with pytest.raises(NumericError, match=rf"layers\.0\.mixer\.q holds the code {code}:"):
        pack(codes, name="layers.0.mixer.q")


@pytest.mark.parametrize("shift", [0, 2, 4, 6])
def test_unpack_refuses_the_pair_0b11_wherever_it_stands(shift: int) -> None:
    packed = np.full((3, 2), 0b01_01_01_01, np.uint8)
    packed[2, 1] |= 0b11 << shift

    with pytest.raises(NumericError, match=r"head holds the byte 0x.. at \[2, 1\]"):
        unpack(packed, columns=8, name="head")


def test_legal_bytes_are_all_but_those_with_the_pair_0b11() -> None:
    legal = [byte for byte in range(256) if "3" not in np.base_repr(byte, 4)]

    require_legal(np.array([legal], np.uint8), "q")

    for byte in set(range(256)) - set(legal):
        with pytest.raises(NumericError, match=f"q holds the byte {byte:#04x} at"):
            require_legal(np.array([[0, byte]], np.uint8), "q")


@pytest.mark.parametrize("place", [0, 2**17 - 1, 2**17, 3 * 10**5 - 1])
def test_an_illegal_byte_is_found_in_every_part_of_a_large_matrix(place: int) -> None:
    packed = np.zeros((300, 1000), np.uint8)
    packed.flat[place] = 0b11

    with pytest.raises(NumericError, match=rf"at \[{place // 1000}, {place % 1000}\], with"):
        require_legal(packed, "q")


@UNHURRIED
@given(SEEDS, ROWS, COLUMNS)
def test_every_packed_matrix_is_legal(seed: int, rows: int, columns: int) -> None:
    packed = pack(random_codes(seed, rows, columns))

    require_legal(packed, "q")


@pytest.mark.parametrize("columns", [4, 9, 1000])
def test_unpack_refuses_rows_of_another_length(columns: int) -> None:
    packed = np.full((3, 2), 0b01_01_01_01, np.uint8)

    with pytest.raises(ShapeError, match=f"q has 2 bytes a row but {columns} columns need"):
        unpack(packed, columns=columns, name="q")


# Weights.


@UNHURRIED
@given(SEEDS, ROWS, st.integers(1, 5), st.sampled_from([4, 128, 256]), EXPONENTS)
def test_a_scale_is_the_float16_of_the_mean_magnitude(
    seed: int, rows: int, num_blocks: int, block: int, exponent: int
) -> None:
    weight = normal(seed, rows, num_blocks * block, exponent=exponent)

    _, scales = quantize(weight, block=block)

    magnitude = np.abs(weight).reshape(rows, num_blocks, block).mean(axis=2)
    assert scales.dtype == np.float16
    assert np.array_equal(scales, np.maximum(magnitude, 2.0**-14).astype(np.float16))


@UNHURRIED
@given(SEEDS, ROWS, st.integers(1, 5), st.sampled_from([4, 128, 256]), EXPONENTS)
def test_a_code_is_the_weight_over_its_rounded_scale_rounded(
    seed: int, rows: int, num_blocks: int, block: int, exponent: int
) -> None:
    weight = normal(seed, rows, num_blocks * block, exponent=exponent)

    codes, scales = quantize(weight, block=block)

    divisor = scales.astype(np.float32).repeat(block, axis=1)
    assert codes.dtype == np.int8
    assert np.array_equal(codes, np.rint(weight / divisor).clip(-1, 1))


@pytest.mark.parametrize("columns", [4, 68, 1024])
def test_one_block_may_be_the_whole_row(columns: int) -> None:
    weight = normal(0, 3, columns)

    codes, scales = quantize(weight, block=columns)

    assert scales.shape == (3, 1)
    assert np.array_equal(scales[:, 0], np.abs(weight).mean(axis=1).astype(np.float16))
    assert codes.shape == (3, columns)


def test_halves_round_to_even() -> None:
    # The mean magnitude is 1, so the quotients are the weights.
    weight = np.array([[0.5, -0.5, 1.5, -1.5]], np.float32)

    codes, scales = quantize(weight, block=4)

    assert scales.tolist() == [[1.0]]
    assert codes.tolist() == [[0, 0, 1, -1]]


def test_an_all_zero_block_quantizes_to_zero_not_nan() -> None:
    weight = np.concatenate([np.zeros((2, 128)), np.ones((2, 128))], axis=1).astype(np.float32)

    codes, scales = quantize(weight, block=128)

    assert scales.tolist() == [[2.0**-14, 1.0]] * 2
    assert not codes[:, :128].any()
    assert codes[:, 128:].all()


def test_subnormal_weights_quantize_to_zero() -> None:
    weight = np.full((1, 128), 1e-42, np.float32)

    codes, scales = quantize(weight, block=128)

    assert scales.tolist() == [[2.0**-14]]
    assert not codes.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_names_the_tensor_that_is_not_finite(bad: float) -> None:
    weight = np.zeros((3, 128), np.float32)
    weight[1, 5] = bad

    with pytest.raises(NumericError, match=rf"layers\.3\.mixer\.o holds {bad} at \[1, 5\]"):
        quantize(weight, block=128, name="layers.3.mixer.o")


@pytest.mark.parametrize("size", [7e4, 3e38], ids=["beyond float16", "whose sum overflows"])
def test_quantize_refuses_weights_whose_scale_is(size: float) -> None:
    weight = np.full((1, 128), size, np.float32)

    with pytest.raises(NumericError, match=r"q has a block of mean magnitude .* at most 65504"):
        quantize(weight, block=128, name="q")


def test_quantize_refuses_a_block_that_does_not_divide_the_columns() -> None:
    with pytest.raises(ShapeError, match="cannot split 12 columns into blocks of 8: pass"):
        quantize(np.zeros((1, 12), np.float32), block=8)


@UNHURRIED
@given(SEEDS, ROWS, st.integers(1, 5), st.sampled_from([2, 4, 128]))
def test_dequantize_multiplies_each_code_by_the_scale_of_its_block(
    seed: int, rows: int, num_blocks: int, block: int
) -> None:
    codes = random_codes(seed, rows, num_blocks * block)
    scales = normal(seed, rows, num_blocks).astype(np.float16)

    weight = dequantize(codes, scales)

    assert weight.dtype == np.float32
    assert np.array_equal(weight, codes * scales.astype(np.float32).repeat(block, axis=1))


def test_dequantize_refuses_scales_of_another_matrix() -> None:
    with pytest.raises(ShapeError, match=r"4 scales a row .* 10 columns"):
        dequantize(np.zeros((1, 10), np.int8), np.ones((1, 4), np.float16))


@UNHURRIED
@given(SEEDS, ROWS, st.integers(1, 5), st.sampled_from([1, 2, 67, 128]))
def test_recover_undoes_dequantize(seed: int, rows: int, num_blocks: int, block: int) -> None:
    codes = random_codes(seed, rows, num_blocks * block)
    scales = np.abs(normal(seed, rows, num_blocks)).astype(np.float16)
    zero = ~codes.reshape(rows, num_blocks, block).any(axis=2)

    again, scales_again = recover(dequantize(codes, scales), block=block)

    assert again.dtype == np.int8
    assert scales_again.dtype == np.float16
    assert np.array_equal(again, codes)
    assert np.array_equal(scales_again, np.where(zero, np.float16(2.0**-14), scales))


@pytest.mark.parametrize("scale", [2.0**-24, 65504.0], ids=["smallest", "largest"])
def test_recover_takes_every_scale_of_float16(scale: float) -> None:
    values = np.array([[scale, -0.0, -scale]], np.float32)

    codes, scales = recover(values, block=3)

    assert codes.tolist() == [[1, 0, -1]]
    assert scales.tolist() == [[scale]]


def test_recover_takes_float16_values() -> None:
    codes, scales = random_codes(0, 3, 8), np.full((3, 2), 0.3, np.float16)

    again, scales_again = recover(dequantize(codes, scales).astype(np.float16), block=4)

    assert np.array_equal(again, codes)
    assert np.array_equal(scales_again, scales)


def test_recover_refuses_a_block_of_two_magnitudes() -> None:
    values = np.array([[1, 1, 1, 1], [1, -1, 0.5, 2]], np.float32)

    with pytest.raises(NumericError, match=r"up holds 0\.5 and 2\.0 in columns 2 to 3 of row 1"):
        recover(values, block=2, name="up")


@pytest.mark.parametrize("scale", [1e5, 2.0**-25, 0.1])
def test_recover_refuses_a_scale_that_float16_does_not_hold(scale: float) -> None:
    values = np.full((2, 4), scale, np.float32)

    with pytest.raises(NumericError, match=r"up has the scale .* in row 0, which float16 does not"):
        recover(values, block=4, name="up")


def test_recover_names_the_tensor_that_is_not_finite() -> None:
    with pytest.raises(NumericError, match=r"up holds nan at \[0, 1\]"):
        recover(np.array([[0, np.nan]], np.float32), block=2, name="up")


# Tables.


@UNHURRIED
@given(SEEDS, ROWS, COLUMNS, st.integers(-7, 12))
def test_a_row_is_within_half_a_step_of_its_codes(
    seed: int, rows: int, columns: int, exponent: int
) -> None:
    table = normal(seed, rows, columns, exponent=exponent)

    codes, scales = quantize_table(table, block=columns)

    steps = table / scales.astype(np.float32)
    # A scale that float16 rounded down leaves at most 127 * 2**-11 of a step beyond code 127.
    assert np.abs(steps - codes).max() <= 0.5 + 127 * 2.0**-11


@UNHURRIED
@given(SEEDS, ROWS, COLUMNS)
def test_the_largest_of_a_row_has_code_127(seed: int, rows: int, columns: int) -> None:
    table = normal(seed, rows, columns)
    # A row this large is above the smallest scale.
    table[:, 0] = 1

    codes, scales = quantize_table(table, block=columns)

    assert np.array_equal(np.abs(codes).max(axis=1), np.full(rows, 127))
    largest = np.abs(table).max(axis=1, keepdims=True)
    assert np.array_equal(scales, (largest / np.float32(127)).astype(np.float16))


def test_each_block_of_a_row_is_rounded_for_itself() -> None:
    table = normal(0, 3, 64)

    codes, scales = quantize_table(table, block=16)

    of_blocks = quantize_table(table.reshape(12, 16), block=16)
    assert np.array_equal(codes, of_blocks[0].reshape(3, 64))
    assert np.array_equal(scales, of_blocks[1].reshape(3, 4))


def test_a_row_of_zeros_has_codes_of_zero() -> None:
    codes, scales = quantize_table(np.zeros((2, 5), np.float32), block=5)

    assert not codes.any()
    assert scales.tolist() == [[2.0**-14]] * 2


@UNHURRIED
@given(SEEDS, ROWS, COLUMNS, st.integers(-20, 12))
def test_recover_rows_undoes_the_rounding_of_a_table(
    seed: int, rows: int, columns: int, exponent: int
) -> None:
    table = normal(seed, rows, columns, exponent=exponent)
    table[0] = 0
    codes, scales = quantize_table(table, block=columns)
    values = codes.astype(np.float32) * scales.astype(np.float32)

    again, scales_again = recover_rows(values)

    assert again.dtype == np.int8
    assert scales_again.dtype == np.float16
    assert np.array_equal(again, codes)
    assert np.array_equal(scales_again, scales)


def test_recover_rows_finds_the_scale_of_a_row_without_the_code_127() -> None:
    values = np.array([[3, 7, -101, 0]], np.float32) * np.float32(np.float16(0.3))

    codes, scales = recover_rows(values)

    assert codes.tolist() == [[3, 7, -101, 0]]
    assert scales.tolist() == [[np.float16(0.3)]]


@pytest.mark.parametrize(
    "row", [[1, 0.1, 0], [1, 1e-3, 0], [1e30, 0, 0]], ids=["no multiple", "beyond 127", "large"]
)
def test_recover_rows_refuses_what_is_no_row_of_codes(row: list[float]) -> None:
    table = np.array([[1, 2, 127], row], np.float32)

    with pytest.raises(NumericError, match="head has row 1, which is not whole codes"):
        recover_rows(table, name="head")


def test_recover_rows_names_the_table_that_is_not_finite() -> None:
    with pytest.raises(NumericError, match=r"head holds nan at \[0, 1\]"):
        recover_rows(np.array([[0, np.nan]], np.float32), name="head")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_quantize_table_names_the_table_that_is_not_finite(bad: float) -> None:
    table = np.zeros((3, 5), np.float32)
    table[2, 4] = bad

    with pytest.raises(NumericError, match=rf"embedding holds {bad} at \[2, 4\]"):
        quantize_table(table, block=5, name="embedding")


def test_quantize_table_refuses_a_scale_beyond_float16() -> None:
    with pytest.raises(NumericError, match=r"head has a block of magnitude .*float16"):
        quantize_table(np.full((1, 4), 1e8, np.float32), block=4, name="head")


# Activations.


@UNHURRIED
@given(SEEDS, ROWS, st.integers(1, 5), st.sampled_from([4, 128, 256]), st.integers(-100, 100))
def test_an_activation_s_code_is_its_share_of_the_largest_times_127(
    seed: int, tokens: int, num_blocks: int, block: int, exponent: int
) -> None:
    x = normal(seed, tokens, num_blocks * block, exponent=exponent)

    codes, scales = quantize_activations(x, block=block)

    largest = np.abs(x).reshape(tokens, num_blocks, block).max(axis=2)
    inverse = (np.float32(127) / largest).repeat(block, axis=1)
    assert np.array_equal(scales, largest / np.float32(127))
    assert np.array_equal(codes, np.rint(x * inverse))


def test_activations_at_halves_round_to_even() -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127]], np.float32)

    codes, scales = quantize_activations(x, block=8)

    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]]
    assert scales.tolist() == [[1.0]]


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 2.0**-120], ids=str)
def test_a_block_too_small_for_a_scale_counts_as_zeros(size: float) -> None:
    x = np.concatenate([np.full((1, 4), size), np.full((1, 4), -2.0)], axis=1).astype(np.float32)

    codes, scales = quantize_activations(x, block=4)

    assert codes.tolist() == [[0] * 4 + [-127] * 4]
    assert scales.tolist() == [[0.0, np.float32(2) / np.float32(127)]]


def test_the_smallest_block_that_counts_has_a_normal_scale() -> None:
    x = np.full((1, 4), 2.0**-119, np.float32)

    codes, scales = quantize_activations(x, block=4)

    assert codes.tolist() == [[127] * 4]
    assert scales[0, 0] >= np.finfo(np.float32).smallest_normal


def test_the_largest_finite_activations_keep_their_codes() -> None:
    x = np.array([[np.finfo(np.float32).max, -np.finfo(np.float32).max, 0, 1]], np.float32)

    codes, _ = quantize_activations(x, block=4)

    assert codes.tolist() == [[127, -127, 0, 0]]


# Products.


@UNHURRIED
@given(SEEDS, st.integers(1, 4), ROWS, st.integers(1, 4), st.sampled_from([1, 4, 128, 256]))
def test_integer_sums_are_exact(
    seed: int, tokens: int, rows: int, num_blocks: int, block: int
) -> None:
    x_codes = random_codes(seed, tokens, num_blocks * block, largest=127)
    codes = random_codes(seed + 1, rows, num_blocks * block, largest=127)

    sums = block_products(x_codes, codes, block=block)

    x_blocks = x_codes.reshape(tokens, 1, num_blocks, block).astype(np.int64)
    blocks = codes.reshape(1, rows, num_blocks, block).astype(np.int64)
    assert sums.dtype == np.int32
    assert np.array_equal(sums, (x_blocks * blocks).sum(axis=3).transpose(2, 0, 1))


# Sums around 2**24, from which on float32 has no odd numbers, and the largest that a configuration allows.
@pytest.mark.parametrize("columns", [1039, 1040, 1041, 1 << 16])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_are_exact_in_int32(sign: int, columns: int) -> None:
    x_codes = np.full((1, columns), 127, np.int8)
    codes = np.full((1, columns), 127 * sign, np.int8)

    sums = block_products(x_codes, codes, block=columns)

    assert sums.tolist() == [[[127 * 127 * columns * sign]]]


@UNHURRIED
@given(seed=SEEDS, rows=ROWS, columns=COLUMNS, exponent=st.integers(-110, 120))
def test_a_number_in_4_bits_is_off_by_half_a_code_of_its_block(
    seed: int, rows: int, columns: int, exponent: int
) -> None:
    x = normal(seed, rows, columns, exponent=exponent)

    codes, scales = quantize_kv(x)

    assert codes.shape == x.shape
    assert scales.shape == (rows, -(-columns // KV_BLOCK))
    assert codes.min() >= -7
    assert codes.max() <= 7
    of_numbers = np.repeat(scales, KV_BLOCK, axis=1)[:, :columns].astype(np.float64)
    # The largest is cut off by as much as its scale was rounded down: 7 codes times 2**-9.
    assert (np.abs(codes * of_numbers - x) <= (0.5 + 1e-5) * of_numbers).all()


@UNHURRIED
@given(seed=SEEDS, columns=COLUMNS, exponent=EXPONENTS)
def test_a_scale_of_4_bits_is_a_seventh_of_the_largest_number_as_bfloat16(
    seed: int, columns: int, exponent: int
) -> None:
    x = normal(seed, 1, columns, exponent=exponent)

    _, scales = quantize_kv(x)

    assert not (scales.view(np.uint32) & 0xFFFF).any()
    for block, scale in enumerate(scales[0]):
        largest = np.abs(x[0, block * KV_BLOCK : (block + 1) * KV_BLOCK]).max()
        assert abs(scale - largest / 7) <= largest / 7 * 2**-8


def test_scales_of_4_bits_at_halves_round_to_even() -> None:
    x = np.array([[7 * (1 + 2**-8)], [7 * (1 + 3 * 2**-8)]], np.float32)

    _, scales = quantize_kv(x)

    assert scales.tolist() == [[1], [1 + 2**-6]]


def test_numbers_at_halves_of_a_code_of_4_bits_round_to_even() -> None:
    codes, scales = quantize_kv(np.array([[7, 0.5, 1.5, -2.5, -0.5]], np.float32))

    assert (codes.tolist(), scales.tolist()) == ([[7, 0, 2, -2, 0]], [[1]])


def test_blocks_of_4_bits_have_scales_of_their_own() -> None:
    x = np.full((1, 65), 7, np.float32)
    x[0, 32:64], x[0, 64] = 0, -21

    codes, scales = quantize_kv(x)

    assert codes.tolist() == [[7] * 32 + [0] * 32 + [-7]]
    assert scales.tolist() == [[1, 0, 3]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_block_of_4_bits_that_is_not_finite_is_nan_and_no_other(bad: float) -> None:
    x = np.full((1, 40), 7, np.float32)
    x[0, 3] = bad

    codes, scales = quantize_kv(x)

    assert codes.tolist() == [[0] * 32 + [7] * 8]
    np.testing.assert_array_equal(scales, [[np.nan, 1]])


@pytest.mark.parametrize(
    ("largest", "is_kept"), [(1e-45, False), (2.0**-120, False), (2.0**-119, True), (3e38, True)]
)
def test_blocks_of_4_bits_are_kept_at_every_size_but_the_least(
    largest: float, is_kept: bool
) -> None:
    codes, scales = quantize_kv(np.array([[largest, -largest]], np.float32))

    assert codes.tolist() == [[7, -7] if is_kept else [0, 0]]
    assert np.isfinite(scales).all()
    assert (scales > 0).all() == is_kept
