"""Files that llama.cpp's own quantiser has written of float16 ones are the models that llama.cpp runs."""

import ctypes
import platform
import sys
from contextlib import closing
from pathlib import Path

import gguf
import numpy as np
import pytest

from nanochat import ternary
from nanochat.blocks.checks import count_zeros, require_scales, share_of_zeros, zero_blocks
from nanochat.export import formats
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.llama_cpp_library import last_error, library
from nanochat.export.gguf.tables import COLUMNS_OF_SCALE, integer_table
from nanochat.export.gguf.types import (
    Q1_0,
    Q2_0,
    Q4_0,
    Q6_K,
    Q8_0,
    TQ1_0,
    TQ2_0,
    TensorType,
    packed_blocks,
)
from nanochat.export.run import start
from nanochat.weights import Ternary, named_leaves
from tests.export.foreign_ggufs import Case, write
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.export.stock_models import rms_ratio
from tests.export.texts import ODD_STRINGS

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)
# Types of files, by their names on the command line of llama-quantize.
TYPES = {"TQ1_0": 36, "TQ2_0": 37, "Q2_0": 41, "Q1_0": 40}
IDS = np.random.default_rng(0).integers(0, 300, 40).tolist()


class Parameters(ctypes.Structure):
    """What the quantiser may be told; only the first four are set here, and it knows the size of the rest."""

    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int32),
        # Of the head and of the embedding.
        ("output_tensor_type", ctypes.c_int32),
        ("token_embedding_type", ctypes.c_int32),
        ("rest", ctypes.c_byte * 240),
    )


def quantize(source: Path, target: Path, kind: str, *, tables: TensorType | None = None) -> Path:
    functions = library()
    defaults = functions.llama_model_quantize_default_params
    defaults.restype = Parameters
    run = functions.llama_model_quantize
    run.restype, run.argtypes = (
        ctypes.c_uint32,
        (ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)),
    )
    parameters = defaults()
    parameters.nthread, parameters.ftype = 1, TYPES[kind]
    if tables is not None:
        parameters.output_tensor_type = parameters.token_embedding_type = tables.number

    code = run(str(source).encode(), str(target).encode(), ctypes.byref(parameters))

    assert code == 0, last_error()
    return target


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0", "Q2_0"])
@pytest.mark.parametrize(
    ("architecture", "tied"), [("llama", False), ("qwen3", True), ("qwen2", True), ("bitnet", True)]
)
def test_a_quantised_file_is_the_model_that_llama_cpp_runs(
    tmp_path: Path, architecture: str, tied: bool, kind: str
) -> None:
    case = Case(architecture=architecture, kind="F16", tied=tied)
    path = quantize(write(tmp_path / "source.gguf", case), tmp_path / "x.gguf", kind)

    bundle = formats.load(path)
    ours = start(bundle, "reference").logits(IDS)
    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = theirs.logits(IDS)
        tokens = [theirs.tokenize(text) for text in ODD_STRINGS]

    linears = {
        tensor.kind.name
        for name, tensor in read_gguf(path).tensors.items()
        if "attn_q." in name or ("ffn_" in name and "norm" not in name)
    }
    assert linears == {kind}
    assert rms_ratio(ours, expected) < 3e-2
    assert [bundle.tokenizer.encode(text) for text in ODD_STRINGS] == tokens


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tables", [Q2_0, TQ1_0, TQ2_0, Q8_0], ids=lambda kind: kind.name)
def test_tables_may_be_of_such_types_too(tmp_path: Path, tables: TensorType, tied: bool) -> None:
    case = Case(architecture="qwen3", kind="F16", tied=tied)
    path = quantize(
        write(tmp_path / "source.gguf", case), tmp_path / "x.gguf", "Q2_0", tables=tables
    )

    ours = start(formats.load(path), "reference").logits(IDS)
    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = theirs.logits(IDS)

    kinds = {name: tensor.kind for name, tensor in read_gguf(path).tensors.items()}
    assert kinds["token_embd.weight"] == tables
    assert kinds.get("output.weight", tables) == tables
    assert rms_ratio(ours, expected) < 6e-2


def test_a_matrix_that_is_ternary_is_quantised_without_loss(tmp_path: Path) -> None:
    case = Case(architecture="qwen3", kind="TQ2_0")
    direct = formats.load(write(tmp_path / "direct.gguf", case))
    source = write(tmp_path / "source.gguf", Case(architecture="qwen3", kind="F16"))

    bundle = formats.load(quantize(source, tmp_path / "x.gguf", "TQ2_0"))

    expected = dict(named_leaves(direct.weights))
    for name, leaf in named_leaves(bundle.weights):
        if isinstance(leaf, Ternary):
            other = expected[name]
            assert isinstance(other, Ternary)
            np.testing.assert_array_equal(leaf.packed, other.packed)
            np.testing.assert_array_equal(leaf.scales, other.scales)


@pytest.mark.parametrize("kind", [Q2_0, TQ1_0, TQ2_0], ids=lambda kind: kind.name)
def test_packed_blocks_of_its_files_are_the_matrices_that_it_was_given(
    tmp_path: Path, kind: TensorType
) -> None:
    source = write(tmp_path / "source.gguf", Case(architecture="qwen3", kind="F16"))
    path = quantize(source, tmp_path / "x.gguf", kind.name)
    name = "blk.1.ffn_up.weight"
    given = read_gguf(source).tensors[name]
    values = given.data.view("<f2").reshape(given.shape).astype(np.float32)

    tensor = read_gguf(path).tensors[name]
    packed, scales = packed_blocks(tensor.kind, tensor.data.reshape(tensor.shape[0], -1), name=name)

    assert tensor.kind == kind
    zeros = count_zeros(packed, name=name)
    require_scales(scales, name=name)
    codes = ternary.unpack(packed.reshape(len(values), -1), columns=values.shape[1])
    np.testing.assert_array_equal(ternary.dequantize(codes, scales), values)
    # Row 3 begins with a block of zeros.
    zero = zero_blocks(zeros, scales, columns=kind.columns)
    assert np.argwhere(zero)[:, 0].tolist() == [3] * (256 // kind.columns)
    assert share_of_zeros(zeros, scales, columns=kind.columns) == (values == 0).mean()


def test_an_ordinary_matrix_that_it_rounds_is_nearly_all_zeros(tmp_path: Path) -> None:
    source = write(tmp_path / "source.gguf", Case(architecture="qwen3", kind="F16"))
    path = quantize(source, tmp_path / "x.gguf", "Q2_0", tables=Q2_0)
    name = "token_embd.weight"

    tensor = read_gguf(path).tensors[name]
    packed, scales = packed_blocks(tensor.kind, tensor.data.reshape(tensor.shape[0], -1), name=name)

    share = share_of_zeros(count_zeros(packed, name=name), scales, columns=64)
    assert 0.75 < share < 0.85


@pytest.mark.parametrize("kind", [Q8_0, Q4_0, Q6_K], ids=lambda kind: kind.name)
def test_its_integer_tables_are_the_numbers_that_the_library_reads(
    tmp_path: Path, kind: TensorType
) -> None:
    source = write(tmp_path / "source.gguf", Case(architecture="qwen3", kind="F16", tied=False))
    path = quantize(source, tmp_path / "x.gguf", "TQ2_0", tables=kind)

    for name in ("token_embd.weight", "output.weight"):
        tensor = read_gguf(path).tensors[name]
        data = tensor.data.reshape(tensor.shape[0], -1)
        codes, scales = integer_table(tensor.kind, data, name=name)

        assert tensor.kind == kind
        factors = np.repeat(scales.astype(np.float32), COLUMNS_OF_SCALE[kind], axis=1)
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.number))
        np.testing.assert_array_equal(codes * factors, expected)


def test_a_bit_of_its_q1_0_is_the_sign_of_a_weight(tmp_path: Path) -> None:
    source = write(tmp_path / "source.gguf", Case(architecture="qwen3", kind="F16"))
    path = quantize(source, tmp_path / "x.gguf", "Q1_0")
    name = "blk.1.ffn_up.weight"
    given = read_gguf(source).tensors[name]
    values = given.data.view("<f2").reshape(given.shape)

    tensor = read_gguf(path).tensors[name]
    packed, scales = packed_blocks(tensor.kind, tensor.data.reshape(len(values), -1), name=name)

    assert tensor.kind == Q1_0
    codes = ternary.unpack(packed.reshape(len(values), -1), columns=values.shape[1])
    np.testing.assert_array_equal(codes[values != 0], np.sign(values[values != 0]))
    assert scales.shape == (len(values), values.shape[1] // 128)
