"""Five ternary codes to a byte: the same bits as two bits each, from fewer bytes.

Legend: see `nanochat.backends.numba.products.linear`.
"""

import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.numba.ops import NumbaOps
from nanochat.backends.numba.products import activation, layouts, linear, trit_codes
from nanochat.backends.numba.products.launching import embed
from nanochat.backends.numba.products.packing import TiledLinear, prepare_leaf
from nanochat.backends.numba.products.trit_codes import CodeLayout, TritLayout, layout_for
from nanochat.backends.numba.runtime.isa import Isa, available, chosen
from nanochat.backends.numba.runtime.lanes import fits_trits
from nanochat.backends.numba.runtime.launch import Launcher
from nanochat.backends.numba.runtime.memory import WeightMemory
from nanochat.backends.numba.tuning.choices import CLASSES, Shape
from nanochat.backends.numba.tuning.tuner import candidates, random_matrix
from nanochat.config import ModelConfig
from nanochat.errors import BackendError, InputError, NumericError
from nanochat.weights import Latent, Stored, Ternary, named_leaves
from tests.parity.random_models import random_packed_weights
from tests.parity.rows import new_rows, run_step

pytestmark = pytest.mark.usefixtures("all_cores")

Values = NDArray[np.float32]
Codes = NDArray[np.int8]

GB = 10**9
LAYOUTS = {isa: layout for isa in available() if (layout := layout_for(isa)) is not None}
needs_trits = pytest.mark.skipif(not LAYOUTS, reason="this CPU has no AVX2")
every_isa = pytest.mark.parametrize("isa", LAYOUTS)
every_layout = pytest.mark.parametrize("layout", get_args(TritLayout))
every_variant = pytest.mark.parametrize("variant", linear.VARIANTS)

CONFIG = ModelConfig(
    vocab_size=320,
    width=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_width=512,
    num_streams=2,
    context_length=64,
)


def random_codes(rows: int, columns: int) -> Codes:
    return np.random.default_rng(0).integers(-1, 2, (rows, columns)).astype(np.int8)


def laid(codes: Codes, layout: CodeLayout, *, weight_block: int = 256) -> TiledLinear:
    rows, columns = codes.shape
    scales = np.random.default_rng(1).uniform(0.01, 2, (rows, columns // weight_block))
    leaf = Ternary(
        packed=ternary.pack(codes),
        scales=scales.astype(np.float16),
        columns=columns,
        activation_block=128,
    )
    found = prepare_leaf("leaf", leaf, WeightMemory(), layout)
    assert isinstance(found, TiledLinear)
    return found


def normal(*shape: int) -> Values:
    return np.random.default_rng(2).standard_normal(shape, np.float32)


def product(
    leaf: TiledLinear, x: Values, variant: int, isa: Isa = "portable", parts: int = 1
) -> Values:
    """The product, with the surroundings of y, which must stay NaN; of two bits the plain one."""
    tokens, blocks = len(x), leaf.columns // 128
    codes = np.empty((tokens, blocks, 128), np.int8)
    sums, scales = np.empty((tokens, blocks), np.int32), np.empty((tokens, blocks), np.float32)
    activation.quantize(x, 128, codes, sums, scales, 0, tokens)
    room = np.full(64 + tokens * leaf.rows + 64, np.nan, np.float32)
    y = room[64:-64].reshape(tokens, leaf.rows)
    if leaf.layout == "two_bits":
        linear.plain_product(leaf.codes, leaf.scales, codes, scales, y, 0, tokens)
        return room
    kernel = linear.integer_product(isa, leaf.layout)
    ends = np.linspace(0, linear.num_tasks(leaf.codes, tokens), parts + 1).astype(int).tolist()
    for first, last in itertools.pairwise(ends):
        kernel(leaf.codes, leaf.scales, codes, sums, scales, y, variant, first, last)
    return room


def same_bits(found: Values, expected: Values) -> bool:
    return np.array_equal(found.view(np.int32), expected.view(np.int32))


def same_as_two_bits(
    codes: Codes, x: Values, variant: int, isa: Isa, *, weight_block: int = 256
) -> bool:
    dense = laid(codes, LAYOUTS[isa], weight_block=weight_block)
    assert dense.layout == LAYOUTS[isa]
    expected = product(laid(codes, "two_bits", weight_block=weight_block), x, variant)
    return same_bits(product(dense, x, variant, isa), expected)


def logits(ops: NumbaOps, config: ModelConfig = CONFIG) -> Values:
    weights = ops.prepare(random_packed_weights(config, seed=0))
    state = new_rows(ops, config, 1, capacity=64)
    prompt, following = range(40), [7]
    results = [run_step(ops, weights, config, state, [0], [ids]) for ids in (prompt, following)]
    return np.concatenate(results)


# The code.


@every_layout
def test_every_five_codes_have_a_byte(layout: TritLayout) -> None:
    digits = np.array(list(itertools.product(range(3), repeat=5)), np.uint8)

    found = trit_codes.codes_of(layout)[trit_codes.bytes_of(layout)[digits @ 4 ** np.arange(5)]]

    np.testing.assert_array_equal(found, digits)


def test_the_third_table_is_read_without_bit_3() -> None:
    byte = np.arange(256, dtype=np.uint8)

    place = trit_codes.third_index(byte)

    np.testing.assert_array_equal(place, trit_codes.third_index(byte ^ np.uint8(8)))
    np.testing.assert_array_equal(np.bincount(place, minlength=128), 2)


@pytest.mark.parametrize(
    ("columns", "block", "expected"),
    [(256, 128, True), (4608, 128, True), (384, 128, False), (512, 256, False)],
)
def test_pairs_of_blocks_of_128_columns_fit(columns: int, block: int, expected: bool) -> None:
    assert fits_trits(columns, block) == expected


# Products.


@every_isa
@every_variant
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 256), (31, 512), (33, 768), (32, 1280), (65, 4608), (7, 5120)]
)
def test_every_variant_writes_the_bits_of_the_plain_loop(
    rows: int, columns: int, variant: int, isa: Isa
) -> None:
    assert same_as_two_bits(random_codes(rows, columns), normal(5, columns), variant, isa)


@every_isa
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 4, 5, 31, 32, 33, 64, 65, 131])
def test_any_number_of_tokens_gives_the_bits_of_the_plain_loop(tokens: int, isa: Isa) -> None:
    assert same_as_two_bits(random_codes(65, 768), normal(tokens, 768), linear.VARIANTS[0], isa)


@every_isa
@pytest.mark.parametrize("weight_block", [128, 256, 384, 768])
def test_any_weight_block_gives_the_bits_of_the_plain_loop(weight_block: int, isa: Isa) -> None:
    codes = random_codes(40, 768)

    assert same_as_two_bits(codes, normal(5, 768), 4, isa, weight_block=weight_block)


@every_isa
@pytest.mark.parametrize("tokens", [1, 4, 40])
@pytest.mark.parametrize("code", [-1, 0, 1])
def test_extreme_sums_are_exact(code: int, tokens: int, isa: Isa) -> None:
    codes = np.full((33, 2048), code, np.int8)

    assert same_as_two_bits(codes, np.ones((tokens, 2048), np.float32), linear.VARIANTS[0], isa)


@every_isa
@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_activations_that_are_not_finite_spoil_their_token_alone(tokens: int, isa: Isa) -> None:
    x = normal(tokens + 1, 512)
    x[0, 300] = np.nan
    codes = random_codes(33, 512)

    y = product(laid(codes, LAYOUTS[isa]), x, 4, isa)[64:-64].reshape(tokens + 1, 33)

    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1:]).all()


@every_isa
@pytest.mark.parametrize("tokens", [1, 131])
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_the_cut_into_tasks_changes_no_bit(parts: int, tokens: int, isa: Isa) -> None:
    leaf = laid(random_codes(65, 512), LAYOUTS[isa])
    x = normal(tokens, 512)

    y = product(leaf, x, linear.VARIANTS[0], isa, parts)

    assert same_bits(y, product(leaf, x, linear.VARIANTS[0], isa))


# Tables.


@every_layout
@pytest.mark.parametrize("weight_block", [128, 256, 768])
def test_rows_of_a_table_are_those_of_two_bits(weight_block: int, layout: TritLayout) -> None:
    codes = random_codes(65, 768)
    tables = [laid(codes, each, weight_block=weight_block) for each in (layout, "two_bits")]
    ids = np.random.default_rng(3).permutation(65).reshape(5, 13)

    dense, expected = (embed(Launcher(1), ids, table) for table in tables)

    assert tables[0].layout == layout
    assert same_bits(dense, expected)


# The layout.


def test_a_weight_takes_less_than_17_tenths_of_a_bit() -> None:
    leaf = laid(random_codes(64, 4096), "power_trits")

    assert 8 * leaf.nbytes <= 1.7 * leaf.rows * leaf.columns


def test_rows_of_a_tile_begin_on_a_line_of_the_cache() -> None:
    assert laid(random_codes(33, 256), "power_trits").codes.ctypes.data % 64 == 0


@pytest.mark.parametrize("place", [(0, 0), (69, 63), (33, 31)])
def test_an_illegal_pair_is_refused_with_its_place(place: tuple[int, int]) -> None:
    packed = ternary.pack(random_codes(70, 256))
    packed[place] = 0b01_01_11_01
    scales = np.ones((70, 1), np.float16)
    leaf = Ternary(packed=packed, scales=scales, columns=256, activation_block=128)

    with pytest.raises(NumericError, match=rf"layers\.0 holds the byte 0x5d at \[{place[0]}, "):
        prepare_leaf("layers.0", leaf, WeightMemory(), "power_trits")


def test_latent_weights_are_laid_out_as_the_codes_that_they_round_to() -> None:
    values = normal(33, 512)
    codes, _ = ternary.quantize(values, block=256)
    leaf = Latent(values=values, kind="ternary", weight_block=256, activation_block=128)

    found = prepare_leaf("leaf", leaf, WeightMemory(), "power_trits")

    assert isinstance(found, TiledLinear)
    np.testing.assert_array_equal(found.codes, laid(codes, "power_trits").codes)


@pytest.mark.parametrize(("columns", "block"), [(384, 128), (416, 208)])
def test_a_matrix_that_does_not_fit_stays_in_two_bits(columns: int, block: int) -> None:
    packed, scales = ternary.pack(random_codes(3, columns)), np.ones((3, 1), np.float16)
    leaf = Ternary(packed=packed, scales=scales, columns=columns, activation_block=block)

    found = prepare_leaf("leaf", leaf, WeightMemory(), "power_trits")
    expected = prepare_leaf("leaf", leaf, WeightMemory(), "two_bits")

    assert isinstance(found, TiledLinear)
    assert isinstance(expected, TiledLinear)
    assert found.layout == "two_bits"
    np.testing.assert_array_equal(found.codes, expected.codes)


# Models.


@every_isa
@pytest.mark.parametrize("threads", [1, 2])
def test_a_model_gives_the_same_bits_in_both_layouts(
    threads: int, isa: Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_ISA", isa)

    dense = logits(NumbaOps(num_threads=threads, layout="five_trits"))

    assert same_bits(dense, logits(NumbaOps(num_threads=threads, layout="two_bits")))


@every_isa
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_model_with_ternary_tables_gives_the_same_bits_in_both_layouts(
    tied: bool, isa: Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_ISA", isa)
    config = replace(CONFIG, table_format="ternary", tie_embeddings=tied)

    dense = logits(NumbaOps(layout="five_trits"), config)

    assert same_bits(dense, logits(NumbaOps(layout="two_bits"), config))


@needs_trits
def test_all_ternary_matrices_of_a_model_are_laid_out_as_asked() -> None:
    prepared = NumbaOps(layout="five_trits").prepare(random_packed_weights(CONFIG, seed=0))

    shapes = [Shape.of(leaf) for _, leaf in named_leaves(prepared) if isinstance(leaf, TiledLinear)]
    assert {shape.kind for shape in shapes} == {layout_for(chosen()), "int8"}


@pytest.mark.skipif(
    LAYOUTS.get(available()[0]) != "table_trits", reason="this CPU has no AVX-512 VNNI and VBMI"
)
def test_only_a_model_larger_than_the_caches_is_laid_out_so_by_itself() -> None:
    ops = NumbaOps()

    assert [ops.layout_of(nbytes) for nbytes in (2**20, 2**27)] == ["two_bits", "table_trits"]


@needs_trits
def test_avx2_lays_a_large_model_out_so_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOCHAT_ISA", "avx2")
    ops = NumbaOps()

    for free, expected in [(None, "two_bits"), (9 * GB, "two_bits"), (8 * GB, "power_trits")]:
        monkeypatch.setattr(layouts, "free_bytes", lambda free=free: free)
        assert ops.layout_of(7 * GB) == expected
        assert ops.layout_of(2**20) == "two_bits"


def test_without_instructions_for_it_no_model_is_laid_out_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOCHAT_ISA", "portable")

    assert NumbaOps().layout_of(2**40) == "two_bits"
    with pytest.raises(BackendError, match=r"the instructions in use are portable: choose layout"):
        NumbaOps(layout="five_trits")


@needs_trits
def test_a_layout_that_a_matrix_does_not_fit_is_refused() -> None:
    weights: Stored = Ternary(
        packed=ternary.pack(random_codes(3, 384)),
        scales=np.ones((3, 1), np.float16),
        columns=384,
        activation_block=128,
    )

    with pytest.raises(InputError, match=r"has 384 columns in blocks of 128: choose layout='auto'"):
        NumbaOps(layout="five_trits").prepare(weights)  # type: ignore[arg-type]  # a tree of one leaf


# The choice among kernels.


@every_isa
@pytest.mark.parametrize("tokens", CLASSES)
def test_every_choice_gives_the_same_bits(
    tokens: int, isa: Isa, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops = NumbaOps(num_threads=2)
    shape = Shape(LAYOUTS[isa], 259, 512, 128)
    leaf = random_matrix(shape, weight_blocks=2, memory=WeightMemory())
    isas = [isa, *(other for other in available() if other != isa)]
    ways = candidates(shape, tokens, isas, threads=2, nanoseconds=10_000)

    results = []
    for way in ways:
        monkeypatch.setattr(ops.tuner, "choice", lambda _leaf, _tokens, way=way: way)
        results.append(ops.numpy(ops.project(normal(tokens, 512), leaf)[0]))

    assert Shape.of(leaf) == shape
    assert {way.isa for way in ways} == {i for i in LAYOUTS if LAYOUTS[i] == shape.kind}
    assert all(same_bits(y, results[0]) for y in results)


def test_the_bytes_of_a_shape_are_those_of_its_codes() -> None:
    leaf = laid(random_codes(64, 512), "power_trits")

    assert Shape.of(leaf).nbytes == leaf.codes.nbytes
