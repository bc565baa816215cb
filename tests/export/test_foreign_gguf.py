"""Other people's GGUF files are the models that the unmodified llama.cpp runs, and no file does more than raise."""

import dataclasses
import logging
import platform
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.blocks.plain import plain
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError, ShapeError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.export.gguf.tensors import OutType
from nanochat.export.gguf.write import write_gguf
from nanochat.generation.engine import Engine
from nanochat.weights import Int8, Stored, Ternary, map_leaves, named_leaves
from tests.export.foreign_ggufs import (
    HEAD_DIM,
    HEADS,
    LAYERS,
    ROWS,
    WIDTH,
    Case,
    pack,
    tensors,
    write,
)
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.export.stock_models import make_bundle, rms_ratio
from tests.export.texts import ODD_STRINGS

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)
CASES = {
    "qwen3 TQ2_0": Case(architecture="qwen3"),
    "qwen3 TQ1_0, Q8_0": Case(architecture="qwen3", kind="TQ1_0", table="Q8_0"),
    "qwen3 Q2_0, Q6_K": Case(architecture="qwen3", kind="Q2_0", table="Q6_K", tied=False),
    "qwen2 TQ2_0, rows": Case(architecture="qwen2", table="Q8_0 rows", tied=False),
    "llama TQ1_0, factors": Case(architecture="llama", kind="TQ1_0", table="Q8_0", scaled=True),
    "llama Q2_0, F32": Case(architecture="llama", kind="Q2_0", table="F32", tied=False),
    "bitnet TQ2_0, factors": Case(architecture="bitnet", table="BF16", scaled=True),
    "qwen3moe TQ2_0, factors": Case(architecture="qwen3moe", scaled=True),
    "qwen3moe Q2_0, Q4_0": Case(architecture="qwen3moe", kind="Q2_0", table="Q4_0"),
}
CASE = CASES["qwen3 TQ2_0"]
IDS = np.random.default_rng(0).integers(0, 300, 40).tolist()


def engine(path: Path) -> Engine:  # type: ignore[type-arg]
    config, weights, _ = load_foreign_gguf(path, read_gguf(path))
    ops = ReferenceOps()
    return Engine(config, ops.prepare(weights), ops)


def read_whole(path: Path) -> tuple[ModelConfig, dict[str, Stored]]:
    """A model of which every matrix has been read and checked."""
    config, weights, _ = load_foreign_gguf(path, read_gguf(path))
    return config, dict(named_leaves(map_leaves(lambda _, leaf: plain(leaf), weights)))


def greedy(model: Engine, num_tokens: int) -> list[int]:  # type: ignore[type-arg]
    state, logits = model.prefill(IDS[:8], capacity=8 + num_tokens)
    tokens = [int(logits.argmax())]
    while len(tokens) < num_tokens:
        tokens.append(int(model.decode(tokens[-1:], state)[0].argmax()))
    return tokens


@on_linux_x86
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logits_and_greedy_tokens_are_those_of_llama_cpp(tmp_path: Path, case: Case) -> None:
    path = write(tmp_path / "model.gguf", case)
    ours = engine(path)

    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected, tokens = theirs.logits(IDS), theirs.greedy(IDS[:8], num_tokens=16)

    assert rms_ratio(ours.logits(IDS), expected) < 3e-2
    assert greedy(ours, 16) == tokens


@on_linux_x86
def test_the_pairs_that_llama_rotates_are_found(tmp_path: Path) -> None:
    case = CASES["llama Q2_0, F32"]
    path = write(tmp_path / "model.gguf", case)
    other = write(tmp_path / "other.gguf", replace(case, architecture="qwen2"))

    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = theirs.logits(IDS)

    assert rms_ratio(engine(other).logits(IDS), expected) > 0.1


@pytest.mark.parametrize("outtype", ["tq2_0", "tq1_0", "q2_0"])
@pytest.mark.parametrize("name", ["qk-norm", "plain", "untied", "experts", "dense tables", "ahead"])
def test_our_own_stock_exports_are_read_as_anybody_s(
    tmp_path: Path, name: str, outtype: OutType
) -> None:
    source = make_bundle(name)
    path = tmp_path / "model.gguf"
    write_gguf(path, source, outtype=outtype, runtime="llama.cpp")
    file = read_gguf(path)
    kept = {key: value for key, value in file.metadata.items() if not key.startswith("nanochat.")}

    config, weights, tokenizer = load_foreign_gguf(path, dataclasses.replace(file, metadata=kept))

    leaves = dict(named_leaves(weights))
    for leaf_name, leaf in named_leaves(source.weights):
        if isinstance(leaf, Ternary) and not leaf_name.startswith("ahead."):
            found = plain(leaves[leaf_name])
            assert isinstance(found, Ternary)
            assert np.array_equal(found.packed, leaf.packed)
    assert (config.qk_norm, config.table_format) == (
        source.config.qk_norm,
        source.config.table_format,
    )
    assert [tokenizer.encode(text) for text in ODD_STRINGS] == [
        source.tokenizer.encode(text) for text in ODD_STRINGS
    ]
    assert tokenizer.opening == source.tokenizer.opening
    assert tokenizer.special_ids == source.tokenizer.special_ids


def test_a_table_with_a_scale_for_each_row_stays_in_8_bits(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", CASES["qwen2 TQ2_0, rows"])

    config, weights, _ = load_foreign_gguf(path, read_gguf(path))

    assert config.table_format == "int8"
    assert isinstance(weights.head, Int8)


def test_what_is_rounded_otherwise_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(
        tmp_path / "model.gguf", replace(CASES["qwen3 Q2_0, Q6_K"], table="F16", scaled=True)
    )

    with caplog.at_level(logging.INFO):
        load_foreign_gguf(path, read_gguf(path))

    assert "in blocks of 128 columns, where llama.cpp rounds in blocks of 32" in caplog.text
    assert "rounded to float16; the largest relative error found is" in caplog.text


def test_widths_of_no_block_of_128_have_blocks_of_64(tmp_path: Path) -> None:
    case = Case(architecture="qwen3", kind="Q2_0", hidden=320, scaled=True)
    path = write(tmp_path / "model.gguf", case)

    config, _, _ = load_foreign_gguf(path, read_gguf(path))

    assert (config.weight_block, config.activation_block) == (64, 64)


@on_linux_x86
def test_scales_of_64_columns_are_kept(tmp_path: Path) -> None:
    name = "blk.0.attn_q.weight"
    values = np.ones((HEADS * HEAD_DIM, WIDTH), np.float32)
    values[5, :64] = 2
    changed = {name: (values.shape, 42, pack(values, "Q2_0"))}
    path = write(tmp_path / "model.gguf", replace(CASE, kind="Q2_0"), changed_tensors=changed)

    config, leaves = read_whole(path)
    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = theirs.logits(IDS)

    assert (config.weight_block, config.activation_block) == (64, 64)
    leaf = leaves["layers.0.mixer.q"]
    assert isinstance(leaf, Ternary)
    assert leaf.scales[5].tolist() == [2, 1, 1, 1]
    assert rms_ratio(engine(path).logits(IDS), expected) < 3e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qwen3.rope.scaling.type": "dynamic"}, "rope.scaling.type is 'dynamic'"),
        ({"qwen3.rope.scaling.type": "longrope"}, "there is no tensor rope_factors_short"),
        ({"qwen3.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor is 0.5"),
        ({"qwen3.attention.sliding_window": 64}, "attention.sliding_window is 64"),
        ({"qwen3.logit_scale": 0.5}, "logit_scale is 0.5"),
        ({"qwen3.rope.dimension_count": 65}, "rope_dims=65 is odd"),
        ({"qwen3.attention.value_length": 32}, "attention.value_length is 32"),
        ({"qwen3.attention.head_count": [4, 2]}, "attention.head_count is array"),
        ({"qwen3.attention.head_count": 0}, "attention.head_count is 0"),
        ({"qwen3.block_count": None}, "block_count is None"),
        ({"qwen3.block_count": 2**31}, "num_layers=2147483648"),
        ({"qwen3.expert_count": 4}, "expert_count is 4"),
        ({"qwen3.attention.layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
    ],
)
def test_what_this_package_does_not_compute_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "model.gguf", CASE, changes=changes)

    with pytest.raises(ConfigError, match=message) as error:
        load_foreign_gguf(path, read_gguf(path))
    assert "model.gguf" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "gpt2"}, "architecture is 'gpt2'.*; pass one of these"),
        ({"tokenizer.ggml.model": "t5"}, "tokenizer.ggml.model is 't5'"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "tokenizer.ggml.pre is 'unheard-of'"),
        ({"tokenizer.ggml.pre": [1, 2]}, "tokenizer.ggml.pre is array"),
        ({"tokenizer.ggml.token_type": [1] * 3}, "is no list of 320 numbers"),
        ({"tokenizer.ggml.tokens": ["a"] * ROWS}, "two tokens have the same text"),
        ({"tokenizer.ggml.tokens": list(map(str, range(ROWS + 1)))}, "only 320 rows"),
        ({"tokenizer.ggml.merges": ["ab"]}, "the merge 'ab' is no pair"),
        ({"tokenizer.ggml.merges": ["to nonsense"]}, "cannot read this tokenizer"),
        ({"tokenizer.ggml.bos_token_id": "one"}, "bos_token_id is 'one'"),
    ],
)
def test_a_file_that_cannot_be_a_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    more = (
        {"tokenizer.ggml.token_type": None}
        if len(changes.get("tokenizer.ggml.tokens", [])) > ROWS
        else {}
    )
    path = write(tmp_path / "model.gguf", CASE, changes={**changes, **more})

    with pytest.raises(FormatError, match=message) as error:
        load_foreign_gguf(path, read_gguf(path))
    assert "model.gguf" in str(error.value)


def damage(name: str, position: int, data: bytes) -> Any:
    shape, number, content = tensors(CASE)[name]
    content = content.copy()
    content[position : position + len(data)] = np.frombuffer(data, np.uint8)
    return {name: (shape, number, content)}


Q = "blk.1.attn_q.weight"


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        pytest.param(damage(Q, 5, b"\xff"), NumericError, "a code 3 in row 0", id="code 3"),
        pytest.param(
            damage(Q, 64, b"\x00\x7e"), NumericError, "attn_q.weight has the scale nan", id="NaN"
        ),
        pytest.param(damage(Q, 64, b"\x00\xbc"), NumericError, "has the scale -1", id="negative"),
        pytest.param(
            {Q: ((256, 256), 0, np.arange(256 * 256, dtype=np.float32).view(np.uint8))},
            NumericError,
            "attn_q.weight holds 1 and 63 in row 0, columns 0 to 63: a ternary block",
            id="not ternary",
        ),
        pytest.param(
            {Q: ((256, 256), 8, np.zeros(256 * 272, np.uint8))},
            FormatError,
            "attn_q.weight is of type Q8_0, must be one of I2_S,",
            id="of 8 bits",
        ),
        pytest.param(
            {Q: ((128, 256), 35, np.zeros(128 * 66, np.uint8))},
            ShapeError,
            r"has shape \[128, 256\] but the metadata ask for \[256, 256\]",
            id="shape",
        ),
        pytest.param(
            {"blk.0.attn_q.bias": ((256,), 0, np.zeros(1024, np.uint8))},
            FormatError,
            "1 tensors have no place",
            id="bias",
        ),
        pytest.param(
            {"rope_freqs.weight": ((32,), 0, np.zeros(128, np.uint8))},
            ConfigError,
            "rope_factors=0.0: must lie between",
            id="factors of zero",
        ),
        pytest.param(
            {"rope_freqs.weight": ((16,), 0, np.zeros(64, np.uint8))},
            FormatError,
            r"rope_freqs.weight is F32 of shape \[16\], must be F32 of \[32\]",
            id="factors of other heads",
        ),
        pytest.param(
            {"blk.0.attn_q.scale": ((2,), 0, np.zeros(8, np.uint8))},
            ShapeError,
            r"must be \[1\]",
            id="two factors",
        ),
        pytest.param(
            {"blk.0.attn_q.scale": ((1,), 0, np.zeros(4, np.uint8))},
            NumericError,
            "lies outside",
            id="factor of zero",
        ),
        pytest.param(
            {"blk.0.attn_q.scale": ((1,), 0, np.full(1, np.nan, np.float32).view(np.uint8))},
            NumericError,
            "lies outside",
            id="factor of NaN",
        ),
        pytest.param(
            {"output_norm.weight": ((256,), 0, np.full(256, np.inf, np.float32).view(np.uint8))},
            NumericError,
            "norm holds inf",
            id="infinite",
        ),
        pytest.param(
            {"token_embd.weight": ((ROWS, 256), 28, np.zeros(ROWS * 256 * 8, np.uint8))},
            FormatError,
            "is of type F64",
            id="type of the table",
        ),
    ],
)
def test_damaged_tensors_are_refused(
    tmp_path: Path, changed: Any, kind: type[Exception], message: str
) -> None:
    path = write(tmp_path / "model.gguf", CASE, changed_tensors=changed)

    with pytest.raises(kind, match=message) as error:
        read_whole(path)
    assert "model.gguf" in str(error.value)


@pytest.mark.parametrize("name", [Q, "token_embd.weight", "output_norm.weight"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "model.gguf", CASE, without=(name,))

    with pytest.raises(FormatError, match=f"{name}"):
        load_foreign_gguf(path, read_gguf(path))


def test_scales_of_zero_make_zeros(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", CASE, changed_tensors=damage(Q, 64, b"\x00\x00"))

    _, leaves = read_whole(path)

    leaf = leaves[f"layers.{LAYERS - 1}.mixer.q"]
    assert isinstance(leaf, Ternary)
    assert (leaf.packed[0, :64] == 0x55).all()
    assert leaf.scales[0, 0] > 0


@on_linux_x86
def test_outer_dimensions_of_1_may_be_written_or_not(tmp_path: Path) -> None:
    case = replace(CASE, scaled=True)
    norm, factor = "blk.0.attn_norm.weight", "blk.1.ffn_up.scale"
    kept = {name: tensors(case)[name] for name in (norm, factor)}
    changed = {name: ((1, *shape), kind, data) for name, (shape, kind, data) in kept.items()}
    path = write(tmp_path / "model.gguf", case, changed_tensors=changed)
    plain = write(tmp_path / "plain.gguf", case)

    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = theirs.logits(IDS)

    assert rms_ratio(engine(path).logits(IDS), expected) < 3e-2
    np.testing.assert_array_equal(engine(path).logits(IDS), engine(plain).logits(IDS))


def test_a_number_for_each_layer_is_one_number_where_all_are_equal(tmp_path: Path) -> None:
    changes = {"qwen3.attention.head_count": [HEADS] * LAYERS}
    path = write(tmp_path / "model.gguf", CASE, changes=changes)

    config, _, _ = load_foreign_gguf(path, read_gguf(path))

    assert config.num_heads == HEADS


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (38, r"type 38, which is TL1 in files for bitnet\.cpp .* Hugging Face folder instead"),
        (99, r"type 99, which neither this version nor its gguf library knows: pass a file"),
    ],
)
def test_a_type_that_is_not_read_is_named(tmp_path: Path, number: int, message: str) -> None:
    changed = {Q: ((256, 256), number, np.zeros(256 * 64 + 32, np.uint8))}
    path = write(tmp_path / "model.gguf", CASE, changed_tensors=changed)

    with pytest.raises(FormatError, match=message):
        read_gguf(path)
