"""What another program's blocks hold becomes the matrix that they stand for, or is refused with its place."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from nanochat import checkpoint
from nanochat.blocks.packings import columns_of
from nanochat.blocks.plain import OUTSIDE, REFUSED, plain, scale_table
from nanochat.config import ModelConfig
from nanochat.errors import NumericError
from nanochat.proof.golden import tensor_digest
from nanochat.weights import Dense, Ternary, named_leaves, replace_leaf
from tests.parity.blocks import KINDS, Kind, damaged, in_blocks, kind_of
from tests.parity.random_models import random_packed_weights

# More rows than are looked at at once, and one that no vector holds.
SHAPES = [(1, 1), (37, 3), (1031, 2)]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


def same(found: object, expected: Ternary) -> bool:
    assert isinstance(found, Ternary)
    assert (found.columns, found.activation_block) == (expected.columns, expected.activation_block)
    scales = np.array_equal(found.scales.view(np.uint16), expected.scales.view(np.uint16))
    return np.array_equal(found.packed, expected.packed) and scales


@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocks_hold_the_matrix_that_was_written(kind: Kind, shape: tuple[int, int]) -> None:
    leaf, expected = in_blocks(kind, *shape)

    assert same(plain(leaf), expected)


@pytest.mark.parametrize("weight_block", [64, 128, 512])
def test_scales_are_shared_or_repeated(weight_block: int) -> None:
    leaf, expected = in_blocks(kind_of("PQ2_0"), 5, 4, weight_block=weight_block)

    assert same(plain(leaf), expected)


@pytest.mark.parametrize("name", ["I2_S", "TQ1_0"])
def test_a_factor_multiplies_scales_once(name: str) -> None:
    leaf, expected = in_blocks(kind_of(name), 5, 4, factor=0.0123)

    assert same(plain(leaf), expected)


def test_blocks_that_are_0_may_share_a_scale_with_any() -> None:
    leaf, _ = in_blocks(kind_of("MLX"), 1, 4, weight_block=512)
    codes, scales = leaf.codes.copy(), np.ones((3, 4), np.float16)
    codes[:, 1], scales[:, 1] = 0x55, 7
    scales[:, 2] = 0
    found = plain(dataclasses.replace(leaf, codes=codes, scales=scales))

    assert isinstance(found, Ternary)
    assert found.scales.tolist() == [[1]]


def test_other_leaves_stay_what_they_are() -> None:
    leaf = Dense(values=np.ones(3, np.float32))

    assert plain(leaf) is leaf


@pytest.mark.parametrize("name", ["Q2_0", "PQ2_0", "MLX", "TQ2_0", "I2_S"])
def test_a_code_3_is_refused_with_its_place_in_the_file(name: str) -> None:
    kind = kind_of(name)

    with pytest.raises(
        NumericError,
        match=f"blk.0.attn_q.weight has a code 3 in row 20, columns {kind.columns} to {2 * kind.columns - 1}: ",
    ):
        plain(damaged(kind, byte=(5, 0b00_11_00_00)))


@pytest.mark.parametrize("name", ["TQ1_0", "PTQ1_0"])
def test_a_fifth_digit_in_a_byte_of_four_is_refused_with_its_place(name: str) -> None:
    with pytest.raises(NumericError, match="has a digit where a block ends, in row 20, block 1: "):
        plain(damaged(kind_of(name), byte=(-1, 2)))


@every_kind
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -0.5])
def test_a_scale_that_is_not_finite_or_negative_is_refused(kind: Kind, scale: float) -> None:
    with pytest.raises(NumericError, match=r"has the scale .* in row 20, block 1: "):
        plain(damaged(kind, scale=scale))


@pytest.mark.parametrize("factor", [1e9, 1e-9, np.nan])
def test_a_factor_that_leaves_float16_is_refused(factor: float) -> None:
    leaf, _ = in_blocks(kind_of("MLX"), 3, 1, factor=factor)

    with pytest.raises(NumericError, match="which is what float16 holds; rescale the matrix"):
        plain(leaf)


def test_scales_that_differ_where_one_is_asked_for_are_refused() -> None:
    leaf, _ = in_blocks(kind_of("PQ2_0"), 3, 4)

    with pytest.raises(NumericError, match=r"scales that differ in row \d, within columns 0 to 25"):
        plain(dataclasses.replace(leaf, weight_block=256))


def test_the_table_of_scales_keeps_all_that_are_legal() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    scales = bits.view(np.float16)
    table = scale_table(1.0)

    legal = np.isfinite(scales) & (scales > 0)
    assert np.array_equal(table[legal], bits[legal])
    assert (table[~legal & (scales != 0)] == REFUSED).all()
    assert (table[scales == 0] == 0).all()


def test_the_table_of_a_factor_says_what_float16_does_not_hold() -> None:
    table = scale_table(2.0)

    numbers = {scale: table[np.float16(scale).view(np.uint16)] for scale in (40000, 2**-16, 1.5)}
    assert numbers == {40000: OUTSIDE, 2**-16: OUTSIDE, 1.5: np.float16(3).view(np.uint16)}


@every_kind
def test_columns_follow_from_the_packing(kind: Kind) -> None:
    leaf, _ = in_blocks(kind, 1, 1)

    assert columns_of(leaf.packing, leaf.codes.shape[2]) == kind.columns


def test_a_model_with_blocks_is_saved_as_what_they_hold(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=320,
        width=256,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        ffn_width=512,
        num_streams=1,
        context_length=64,
        weight_block=256,
        activation_block=256,
    )
    weights = random_packed_weights(config, seed=0)
    name = "layers.0.mixer.o"
    leaf, expected = in_blocks(kind_of("TQ2_0"), 256, 1, activation_block=256)
    assert isinstance(dict(named_leaves(weights))[name], Ternary)

    checkpoint.save(tmp_path, config, replace_leaf(weights, name, leaf))

    _, found = checkpoint.load(tmp_path)
    assert same(dict(named_leaves(found))[name], expected)
    assert tensor_digest(leaf) == tensor_digest(expected)


def test_tables_of_many_factors_are_not_kept() -> None:
    for tensor in range(100):
        scale_table(1.0 + tensor)

    assert scale_table.cache_info().currsize <= 2
