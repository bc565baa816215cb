"""The products of int8 activations with ternary and 8-bit weights: every instruction set writes the same right bits.

Legend: see `nanochat.backends.numba.products.linear`.
"""

import itertools
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.products import activation, linear
from nanochat.backends.numba.products.packing import TiledLinear, prepare_leaf
from nanochat.backends.numba.runtime import isa
from nanochat.backends.numba.runtime.isa import Isa
from nanochat.backends.numba.runtime.memory import WeightMemory
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.errors import NumericError
from nanochat.weights import Int8, Latent, Stored, Ternary

Values = NDArray[np.float32]
Codes = NDArray[np.int8]
Kind = Literal["ternary", "int8"]

# Rows, columns, weight block, activation block.
SHAPES = [
    (1, 4, 4, 4),
    (31, 128, 128, 128),
    (32, 512, 256, 128),
    (33, 384, 384, 128),
    (65, 512, 256, 256),
    (7, 768, 768, 768),
    (5, 260, 130, 130),
    (3, 1028, 1028, 1028),
    (2, 5120, 5120, 5120),
]


@dataclass(frozen=True)
class Rounded:
    """What `quantize` makes of activations."""

    codes: Codes
    sums: NDArray[np.int32]
    scales: Values


def leaf_of(codes: Codes, scales: NDArray[np.float16], block: int, kind: Kind) -> TiledLinear:
    columns = codes.shape[1]
    leaf: Stored = Int8(codes=codes, scales=scales, activation_block=block)
    if kind == "ternary":
        packed = ternary.pack(codes)
        leaf = Ternary(packed=packed, scales=scales, columns=columns, activation_block=block)
    found = prepare_leaf("leaf", leaf, WeightMemory())
    assert isinstance(found, TiledLinear)
    return found


def unscaled(codes: Codes, block: int, kind: Kind) -> TiledLinear:
    return leaf_of(codes, np.ones((len(codes), 1), np.float16), block, kind)


def random_codes(rows: int, columns: int, kind: Kind) -> Codes:
    largest = 1 if kind == "ternary" else 127
    generator = np.random.default_rng(0)
    return generator.integers(-largest, largest + 1, (rows, columns)).astype(np.int8)


def random_leaf(shape: tuple[int, int, int, int], kind: Kind) -> TiledLinear:
    rows, columns, weight_block, block = shape
    scales = np.random.default_rng(1).uniform(0.01, 2, (rows, columns // weight_block))
    return leaf_of(random_codes(rows, columns, kind), scales.astype(np.float16), block, kind)


def normal(*shape: int) -> Values:
    return np.random.default_rng(2).standard_normal(shape, np.float32)


def rounded(x: Values, block: int) -> Rounded:
    tokens, blocks = len(x), x.shape[1] // block
    codes = np.full((tokens, blocks, activation.padded_width(block)), 99, np.int8)
    sums = np.empty((tokens, blocks), np.int32)
    scales = np.empty((tokens, blocks), np.float32)
    activation.quantize(x, block, codes, sums, scales, 0, tokens)
    return Rounded(codes, sums, scales)


def in_order(codes: Codes, block: int) -> Codes:
    """Codes of `quantize` in the order of their columns, (N, columns)."""
    tokens, blocks, width = codes.shape
    plain = codes.reshape(tokens, blocks, width // 16, 4, 4).swapaxes(3, 4)
    return plain.reshape(tokens, blocks, width)[:, :, :block].reshape(tokens, blocks * block)


def product(leaf: TiledLinear, x: Rounded, name: Isa, variant: int, parts: int = 1) -> Values:
    """The product, which must not write outside y: its surroundings are returned, too, and are NaN."""
    tokens = len(x.codes)
    room = np.full(64 + tokens * leaf.rows + 64, np.nan, np.float32)
    y = room[64:-64].reshape(tokens, leaf.rows)
    arguments = leaf.codes, leaf.scales, x.codes, x.sums, x.scales, y, variant
    ends = np.linspace(0, linear.num_tasks(leaf.codes, tokens), parts + 1).astype(int).tolist()
    for first, last in itertools.pairwise(ends):
        linear.integer_product(name)(*arguments, first, last)
    return room


def plain(leaf: TiledLinear, x: Rounded) -> Values:
    """What `product` must return."""
    tokens = len(x.codes)
    room = np.full(64 + tokens * leaf.rows + 64, np.nan, np.float32)
    y = room[64:-64].reshape(tokens, leaf.rows)
    linear.plain_product(leaf.codes, leaf.scales, x.codes, x.scales, y, 0, tokens)
    return room


def same_bits(found: Values, expected: Values) -> bool:
    return np.array_equal(found.view(np.int32), expected.view(np.int32))


every_isa = pytest.mark.parametrize("name", isa.available())
every_variant = pytest.mark.parametrize("variant", linear.VARIANTS)
both_kinds = pytest.mark.parametrize("kind", ["ternary", "int8"])


# Products.


@both_kinds
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_plain_loop_forms_the_sums_of_the_contract(
    shape: tuple[int, int, int, int], kind: Kind
) -> None:
    rows, columns, _, block = shape
    codes = random_codes(rows, columns, kind)
    x = rounded(normal(3, columns), block)
    weights = np.arange(1, columns // block + 1, dtype=np.float32)
    x.scales[:] = weights

    y = plain(unscaled(codes, block, kind), x)[64:-64].reshape(3, rows)

    sums = ternary.block_products(in_order(x.codes, block), codes, block=block)
    np.testing.assert_array_equal(y, np.tensordot(weights, sums, axes=1))


@every_isa
@every_variant
@both_kinds
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_instruction_set_writes_the_bits_of_the_plain_loop(
    shape: tuple[int, int, int, int], kind: Kind, variant: int, name: Isa
) -> None:
    leaf = random_leaf(shape, kind)
    x = rounded(normal(7, shape[1]), shape[3])

    y = product(leaf, x, name, variant)

    assert same_bits(y, plain(leaf, x))


@every_isa
@both_kinds
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 64, 65, 131])
def test_any_number_of_tokens_gives_the_bits_of_the_plain_loop(
    tokens: int, kind: Kind, name: Isa
) -> None:
    leaf = random_leaf((65, 256, 256, 128), kind)
    x = rounded(normal(tokens, 256), 128)

    y = product(leaf, x, name, linear.VARIANTS[0])

    assert same_bits(y, plain(leaf, x))


@every_isa
@every_variant
def test_no_tokens_are_no_work(variant: int, name: Isa) -> None:
    leaf = random_leaf((65, 256, 256, 128), "ternary")

    y = product(leaf, rounded(normal(0, 256), 128), name, variant)

    assert y.shape == (128,)
    assert np.isnan(y).all()


@every_isa
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_the_cut_into_tasks_changes_no_bit(parts: int, name: Isa) -> None:
    leaf = random_leaf((65, 256, 256, 128), "ternary")
    x = rounded(normal(131, 256), 128)

    y = product(leaf, x, name, linear.VARIANTS[0], parts)

    assert same_bits(y, plain(leaf, x))


@every_isa
@every_variant
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("block", [128, 144, 256, 272, 8192])
def test_the_largest_ternary_sums_do_not_overflow(
    block: int, sign: int, variant: int, name: Isa
) -> None:
    leaf = unscaled(np.full((33, block), sign, np.int8), block, "ternary")
    x = rounded(np.full((4, block), 127, np.float32), block)

    y = product(leaf, x, name, variant)

    assert (y[64:-64] == sign * 127 * block).all()


@every_isa
@every_variant
@pytest.mark.parametrize("code", [-128, -127, 127])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("block", [128, 1024])
def test_the_largest_8_bit_sums_do_not_overflow(
    block: int, sign: int, code: int, variant: int, name: Isa
) -> None:
    leaf = unscaled(np.full((33, block), code, np.int8), block, "int8")
    x = rounded(np.full((4, block), sign * 127, np.float32), block)

    y = product(leaf, x, name, variant)

    assert (y[64:-64] == sign * code * 127 * block).all()


@every_isa
@both_kinds
def test_a_scale_may_be_any_finite_float16(kind: Kind, name: Isa) -> None:
    scales = np.array([[2**-14], [65504], [2**-24], [3 * 2**-20], [0], [-1.5]], np.float16)
    codes = random_codes(6, 128, kind)
    x = rounded(normal(2, 128), 128)

    y = product(leaf_of(codes, scales, 128, kind), x, name, 4)[64:-64].reshape(2, 6)

    ones = plain(unscaled(codes, 128, kind), x)[64:-64].reshape(2, 6)
    np.testing.assert_array_equal(y, ones * scales[:, 0].astype(np.float32))


@every_isa
@every_variant
@both_kinds
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_does_not_pass_unseen(
    value: float, kind: Kind, variant: int, name: Isa
) -> None:
    values = normal(2, 256)
    values[1, 200] = value
    leaf = random_leaf((33, 256, 256, 128), kind)

    y = product(leaf, rounded(values, 128), name, variant)[64:-64].reshape(2, 33)

    assert np.isfinite(y[0]).all()
    assert np.isnan(y[1]).all()


def test_a_product_of_a_batch_equals_its_rows_to_the_last_bit() -> None:
    ops = NumbaOps()
    leaf = random_leaf((67, 512, 256, 128), "ternary")
    x = normal(7, 512)

    (together,) = ops.project(x, leaf)

    alone = [ops.project(row[None], leaf)[0] for row in x]
    np.testing.assert_array_equal(ops.numpy(together), np.concatenate([*map(ops.numpy, alone)]))


# Rounding.


@pytest.mark.parametrize("block", [4, 128, 130, 256, 512])
def test_activations_are_rounded_as_the_contract_says(block: int) -> None:
    x = normal(9, 512 // block * block)
    x *= np.float32(10) ** np.arange(-4, 5)[:, None].astype(np.float32)
    x[3, :256] = 0
    x[4, :256] = 1e-42
    x[5, :8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, 125.5, 126.5]

    found = rounded(x, block)

    codes, scales = ternary.quantize_activations(x, block=block)
    np.testing.assert_array_equal(in_order(found.codes, block), codes)
    np.testing.assert_array_equal(found.scales, scales)
    np.testing.assert_array_equal(found.sums, codes.reshape(9, -1, block).sum(axis=2))
    np.testing.assert_array_equal(found.codes.sum(axis=2), found.sums)


# CodeLayout.


def test_weights_take_little_more_memory_than_their_bits() -> None:
    codes = np.zeros((4096, 1280), np.int8)
    scales = np.ones((4096, 5), np.float16)

    two_bits, eight_bits = (leaf_of(codes, scales, 128, kind) for kind in ("ternary", "int8"))

    assert 8 * two_bits.nbytes <= 2.2 * codes.size
    assert 8 * eight_bits.nbytes <= 8.2 * codes.size


def test_rows_of_a_tile_begin_on_a_line_of_the_cache() -> None:
    leaves = [random_leaf((33, 256, 256, 128), kind) for kind in ("ternary", "int8")]

    assert [leaf.codes.ctypes.data % 64 for leaf in leaves] == [0, 0]


def test_read_only_and_strided_rows_are_laid_out_alike() -> None:
    packed = ternary.pack(random_codes(70, 256, "ternary"))
    twice = np.repeat(packed, 2, axis=0)
    packed.flags.writeable = False
    scales = np.ones((70, 1), np.float16)

    found, strided = (
        prepare_leaf(
            "leaf",
            Ternary(packed=rows, scales=scales, columns=256, activation_block=128),
            WeightMemory(),
        )
        for rows in (packed, twice[::2])
    )

    assert isinstance(found, TiledLinear)
    assert isinstance(strided, TiledLinear)
    np.testing.assert_array_equal(found.codes, strided.codes)


@pytest.mark.parametrize(("columns", "block"), [(256, 128), (260, 130)], ids=str)
def test_an_illegal_pair_is_refused_with_its_place(columns: int, block: int) -> None:
    packed = ternary.pack(random_codes(70, columns, "ternary"))
    packed[69, 3] = 0b11_01_01_01
    scales = np.ones((70, 1), np.float16)
    leaf = Ternary(packed=packed, scales=scales, columns=columns, activation_block=block)

    with pytest.raises(NumericError, match=r"layers\.0 holds the byte 0xd5 at \[69, 3\]"):
        prepare_leaf("layers.0", leaf, WeightMemory())


@pytest.mark.parametrize(("columns", "block"), [(256, 128), (260, 130), (12, 4)], ids=str)
def test_latent_weights_are_laid_out_as_the_codes_that_they_round_to(
    columns: int, block: int
) -> None:
    values = normal(35, columns)
    codes, scales = ternary.quantize(values, block=block)

    found = prepare_leaf(
        "leaf",
        Latent(values=values, kind="ternary", weight_block=block, activation_block=block),
        WeightMemory(),
    )

    expected = leaf_of(codes, scales, block, "ternary")
    assert isinstance(found, TiledLinear)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scales, expected.scales)


@pytest.mark.parametrize(("columns", "block"), [(256, 128), (260, 130), (12, 4)], ids=str)
def test_an_embedding_is_its_row_of_codes_times_its_scale(columns: int, block: int) -> None:
    codes = random_codes(2 * LANES + 1, columns, "int8")
    scales = np.linspace(0.01, 3, len(codes)).astype(np.float16)[:, None]
    leaf = leaf_of(codes, scales, block, "int8")
    ids = np.array([0, 64, 31, 32, 64])

    y = np.empty((5, columns), np.float32)
    linear.embed()(leaf.codes, leaf.scales, ids, block, y, 0, 5)

    np.testing.assert_array_equal(y, codes[ids] * scales[ids].astype(np.float32))


# Instruction sets.


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ("", ("portable",)),
        ("avx", ("portable",)),
        ("avx2", ("portable",)),
        ("avx2 f16c", ("avx2", "portable")),
        ("avx2 f16c avxvnni", ("avxvnni", "avx2", "portable")),
        ("avx2 f16c avx512f avx512bw avx512vl", ("avx2", "portable")),
        ("avx2 f16c avx512f avx512bw avx512vnni", ("avx512vnni", "avx2", "portable")),
        ("neon dotprod", ("portable",)),
    ],
)
def test_a_cpu_gets_only_instructions_that_it_has(features: str, expected: tuple[Isa, ...]) -> None:
    assert isa.supported(set(features.split())) == expected


# What is printed: the instruction set of a backend, or its error.
CHOICE = """
from nanochat.backends.numba.ops import NumbaOps
from nanochat.errors import NanochatError
try:
    print(NumbaOps().isa)
except NanochatError as error:
    print(type(error).__name__, error)
"""


def printed(program: str, **environment: str) -> str:
    variables = {"PYTHONPATH": ":".join(sys.path), **environment}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=variables, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, isa.available()[0]),
        ({"NANOCHAT_ISA": "portable"}, "portable"),
        ({"NUMBA_CPU_FEATURES": "+sse2"}, "portable"),
        ({"NANOCHAT_ISA": "avx3"}, "InputError NANOCHAT_ISA='avx3' is no instruction set: choose"),
        (
            {"NANOCHAT_ISA": "avx2", "NUMBA_CPU_FEATURES": "+sse2"},
            "BackendError NANOCHAT_ISA=avx2 asks for instructions that this CPU",
        ),
    ],
    ids=["fastest", "forced", "limited", "unknown", "missing"],
)
def test_the_instruction_set_can_be_forced_and_never_exceeds_the_cpu(
    environment: dict[str, str], expected: str
) -> None:
    assert printed(CHOICE, **environment).startswith(expected)


def test_portable_kernels_run_on_a_cpu_without_extensions() -> None:
    program = """
import numpy as np
from nanochat.backends.numba.products import linear
from nanochat.backends.numba.runtime import isa
from tests.backends import test_products as t
leaves = [t.random_leaf((33, 384, 384, 128), kind) for kind in ("ternary", "int8")]
x = t.rounded(t.normal(5, 384), 128)
print(isa.available(), *(t.same_bits(t.product(v, x, "portable", 4), t.plain(v, x)) for v in leaves))
"""

    found = printed(program, NUMBA_CPU_NAME="generic")

    assert found == "('portable',) True True"


def test_each_instruction_set_has_a_kernel_of_its_own_for_one_kind_of_arguments() -> None:
    leaves = [random_leaf((33, 256, 256, 128), kind) for kind in ("ternary", "int8")]
    x = rounded(normal(5, 256), 128)
    kernels: dict[Isa, Any] = {name: linear.integer_product(name) for name in isa.available()}

    for name in kernels:
        for leaf in leaves:
            product(leaf, x, name, 1)

    assert {name: len(kernel.signatures) for name, kernel in kernels.items()} == dict.fromkeys(
        isa.available(), 1
    )
