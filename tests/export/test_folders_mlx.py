"""MLX folders of 2 bits are the models that stock mlx-lm runs, and those of all other formats, to the bit."""

import json
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.utils import load_model, quantize_model, save_model
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from nanochat.blocks.plain import plain
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError, ShapeError
from nanochat.export import formats
from nanochat.export.folders.affine import AffineMatrices
from nanochat.export.folders.bitnet import BitnetMatrices
from nanochat.export.folders.read import load_foreign_folder
from nanochat.export.format import ModelFiles
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.generation.engine import Engine
from nanochat.proof.golden import tensor_digest
from nanochat.proof.parity import UnroundedOps
from nanochat.weights import Stored, Ternary, TernaryBlocks, Weights, map_leaves, named_leaves
from tests.core.foreign_tokenizers import write_llama_3
from tests.export.folder_models import (
    IDS,
    build,
    change,
    keep_ternary,
    read,
    save_mlx,
    save_unpacked,
    transformers_logits,
)
from tests.export.foreign_models import build as build_bitnet
from tests.export.foreign_models import save as save_bitnet
from tests.export.public_ggufs import write_qwen35
from tests.export.stock_models import rms_ratio

MODULE = "model.layers.1.mlp.up_proj"


def mlx_logits(directory: Path) -> NDArray[np.float32]:
    """What stock mlx-lm computes, in float32, of the numbers that it has in float16."""
    model, _ = load_model(directory)
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([IDS]))[0].astype(mx.float32))


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_5"])
def test_logits_are_those_of_mlx_lm(family: str, tied: bool, group: int, tmp_path: Path) -> None:
    model = build(family, tied=tied)
    codes = keep_ternary(model, block=group)
    save_mlx(model, codes, tmp_path, group=group)

    config, _, logits = read(tmp_path, AffineMatrices)

    assert config.weight_block == group
    assert config.table_format == "ternary"
    assert rms_ratio(logits, mlx_logits(tmp_path)) < 1e-5
    assert rms_ratio(logits, transformers_logits(model)) < 1e-5


@pytest.mark.parametrize("but", ["embed_tokens", "lm_head"])
def test_tables_that_are_not_packed_stay_numbers(but: str, tmp_path: Path) -> None:
    model = build("qwen3")
    codes = keep_ternary(model, but=(but,))
    save_mlx(model, codes, tmp_path)

    config, _, logits = read(tmp_path, AffineMatrices)

    forms = [config.table_format, config.head_format]
    assert forms == (["float16", "ternary"] if but == "embed_tokens" else ["ternary", "float16"])
    assert rms_ratio(logits, mlx_logits(tmp_path)) < 1e-5


def test_what_reads_pictures_or_predicts_further_tokens_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("qwen3_5")
    save_mlx(model, keep_ternary(model), tmp_path)
    _, _, logits = read(tmp_path, AffineMatrices)
    one = np.ones(4, np.float16)
    change(tmp_path, tensors={"vision_tower.x.weight": one, "language_model.mtp.x.weight": one})

    _, _, again = read(tmp_path, AffineMatrices)

    assert "2 tensors that read pictures or predict further tokens are left out" in caplog.text
    assert np.array_equal(again, logits)


def load(directory: Path) -> tuple[ModelConfig, Weights[Stored]]:
    fields = json.loads((directory / "config.json").read_text())
    return load_foreign_folder(directory, fields, AffineMatrices)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = build("qwen3")
    codes = keep_ternary(model)
    # A block of zeros, and one of a scale that is none.
    own, scales = codes[f"{MODULE}.weight"]
    own[3, :128], own[4, :128], scales[4, 0] = 0, 1, 0
    return save_mlx(model, codes, tmp_path)


def test_matrices_are_views_of_the_file(saved: Path) -> None:
    _, weights = load(saved)

    matrices = [leaf for _, leaf in named_leaves(weights) if isinstance(leaf, TernaryBlocks)]
    assert len(matrices) == 2 * 7 + 2
    assert all(is_mapped(leaf.codes) and is_mapped(leaf.scales) for leaf in matrices)


def is_mapped(array: object) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(array, mmap.mmap)


@pytest.mark.parametrize(
    "turn",
    [
        pytest.param(lambda w, s, b: (w ^ np.uint32(0xFFFFFFFF), -s, -2 * b), id="backwards"),
        pytest.param(lambda w, s, b: (w, s.astype(np.float32), b.astype(np.float32)), id="float32"),
        pytest.param(
            lambda w, s, b: (w + np.uint32(0x55555555), s, 2 * b), id="one code further, bias too"
        ),
    ],
)
def test_groups_by_any_scale_and_bias_hold_the_same_codes(turn: Any, saved: Path) -> None:
    """3 - q with the scale negated, 1 to 3 with a bias of two scales, and wider numbers."""
    _, leaves, logits = read(saved, AffineMatrices)
    found = load_file(saved / "model.safetensors")
    names = ("weight", "scales", "biases")
    parts = turn(*(found[f"{MODULE}.{name}"] for name in names))
    change(saved, tensors=dict(zip((f"{MODULE}.{n}" for n in names), parts, strict=True)))

    _, others, again = read(saved, AffineMatrices)

    name = "layers.1.network.up"
    assert tensor_digest(others[name]) == tensor_digest(leaves[name])
    assert np.array_equal(again, logits)


def test_a_group_of_two_numbers_is_ternary_if_they_are_of_one_magnitude(tmp_path: Path) -> None:
    model = build("qwen3")
    codes = keep_ternary(model)
    own, scales = codes[f"{MODULE}.weight"]
    own[own == 0] = 1
    save_mlx(model, codes, tmp_path)
    _, leaves, _ = read(tmp_path, AffineMatrices)
    # q is 0 or 1, and the numbers are minus the scale and the scale.
    words = np.zeros((len(own), own.shape[1] // 16), np.uint32)
    for i in range(16):
        words |= (own[:, i::16] > 0).astype(np.uint32) << np.uint32(2 * i)
    change(
        tmp_path,
        tensors={
            f"{MODULE}.weight": words,
            f"{MODULE}.scales": 2 * scales,
            f"{MODULE}.biases": -scales,
        },
    )

    _, others, _ = read(tmp_path, AffineMatrices)

    name = "layers.1.network.up"
    assert tensor_digest(others[name]) == tensor_digest(leaves[name])


def test_what_mlx_rounds_itself_is_refused_with_the_first_block(tmp_path: Path) -> None:
    model = build("qwen3")
    keep_ternary(model)
    save_unpacked(model, tmp_path / "unpacked")
    theirs, config = load_model(tmp_path / "unpacked")
    quantized, config = quantize_model(theirs, config, group_size=128, bits=2)
    save_model(tmp_path / "rounded", quantized, donate_model=False)
    (tmp_path / "rounded" / "config.json").write_text(json.dumps(config))

    with pytest.raises(
        NumericError,
        match=r"holds .* in row 0, columns 0 to 127: .*What MLX rounds to 2 bits itself",
    ):
        load(tmp_path / "rounded")


def spoil(row: int, group: int, value: float) -> Any:
    def change_one(values: Any) -> Any:
        values[row, group] = value
        return values

    return change_one


@pytest.mark.parametrize(
    ("tensors", "kind", "message"),
    [
        ({f"{MODULE}.scales": None}, FormatError, "up_proj.scales is missing"),
        ({f"{MODULE}.biases": None}, FormatError, "up_proj.biases is missing"),
        (
            {f"{MODULE}.biases": spoil(5, 1, 0.25)},
            NumericError,
            "holds .* in row 5, columns 128 to 255",
        ),
        (
            {f"{MODULE}.biases": spoil(5, 1, np.nan)},
            NumericError,
            r"up_proj.biases holds nan at \[5, 1\]",
        ),
        (
            {
                f"{MODULE}.scales": spoil(5, 1, np.inf),
                f"{MODULE}.biases": spoil(5, 1, -np.inf),
            },
            NumericError,
            "has the scale inf in row 5, block 1",
        ),
        (
            {f"{MODULE}.weight": spoil(6, 0, 0xFFFFFFFF)},
            NumericError,
            "up_proj.weight has a code 3 in row 6, columns 0 to 127",
        ),
        (
            {f"{MODULE}.weight": lambda words: np.tile(words, 2)},
            ShapeError,
            "which is of 4 bits for 256 columns",
        ),
        (
            {
                f"{MODULE}.scales": lambda values: np.repeat(values, 4, axis=1),
                f"{MODULE}.biases": lambda values: np.repeat(values, 4, axis=1),
            },
            ShapeError,
            "groups of 32 columns: this package reads groups of 64 and 128",
        ),
        (
            {f"{MODULE}.weight": lambda words: words[:-1]},
            ShapeError,
            r"has shape \[511, 16\] but config.json asks for \[512, 16\]",
        ),
        (
            {f"{MODULE}.weight": lambda words: words.view(np.float32)},
            FormatError,
            "is of type F32, must be U32",
        ),
        (
            {f"{MODULE}.bias": np.ones(512, np.float16)},
            FormatError,
            "1 tensors have no place in this model, the first is 'model.layers.1.mlp.up_proj.bias'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_or_other_tensors_are_refused(
    tensors: dict[str, Any], kind: type[Exception], message: str, saved: Path
) -> None:
    change(saved, tensors=tensors)

    with pytest.raises(kind, match=message):
        read(saved, AffineMatrices)


def test_numbers_that_are_none_are_refused_without_a_warning_besides(tmp_path: Path) -> None:
    model = build("qwen3_5")
    save_mlx(model, keep_ternary(model), tmp_path)
    signalling = np.full(256, 0x7F800001, np.uint32).view(np.float32)
    norm = "language_model.model.norm.weight"
    large = np.full((512, 2), 1e6, np.float32)
    module = f"language_model.{MODULE}"
    before = change(tmp_path, tensors={norm: signalling})
    with pytest.raises(NumericError, match=r"model.norm.weight holds nan at \[0\]"):
        load(before)
    change(tmp_path, tensors={norm: np.ones(256, np.float32)})
    change(tmp_path, tensors={f"{module}.scales": large, f"{module}.biases": -large})

    with pytest.raises(
        NumericError, match=r"has the scale 1e\+06 in row 0, .* float16 does not ho"
    ):
        load(tmp_path)


@pytest.mark.parametrize("said", [[2], {"bits": 2, "mode": "mxfp4"}])
def test_other_modes_are_refused(said: object, saved: Path) -> None:
    change(saved, quantization=said)

    with pytest.raises(ConfigError, match=r"config.json: quantization is .*must be an object"):
        load(saved)


def test_a_folder_is_found_and_its_tensors_are_mapped(saved: Path) -> None:
    write_llama_3(saved)

    bundle = formats.load(saved)

    files = ModelFiles(saved)
    form = formats.detect(files)
    assert form.name == "mlx-ternary"
    assert form.config(files) == bundle.config == load(saved)[0]
    assert form.copied_bytes(files) == 0


def digests(leaves: dict[str, Stored], *, without: tuple[str, ...] = ()) -> dict[str, object]:
    return {name: tensor_digest(v) for name, v in leaves.items() if not name.endswith(without)}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_all_formats_hold_the_same_qwen35(tied: bool, tmp_path: Path) -> None:
    model: Any = build("qwen3_5", tied=tied)
    codes = keep_ternary(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                # Of GGUF's -exp(A_log), the logarithm is taken back.
                for _ in range(8):
                    parameter.copy_(torch.from_numpy(np.log(np.exp(parameter.numpy()))))

    unpacked = read(save_unpacked(model, tmp_path / "unpacked", dtype=torch.float32))
    packed = read(save_mlx(model, codes, tmp_path / "mlx"), AffineMatrices)
    path = write_qwen35(tmp_path / "x.gguf", model, "PQ2_0")
    config, weights, _ = load_foreign_gguf(path, read_gguf(path))
    whole: Weights[Stored] = map_leaves(lambda _, leaf: plain(leaf), weights)
    ops = UnroundedOps()
    logits = Engine(config, ops.prepare(whole), ops).logits(IDS)

    assert unpacked[0] == replace(packed[0], delta_gates="dense")
    # Of float32 in the file.
    assert replace(unpacked[0], norm_eps=config.norm_eps) == config
    assert float(np.float32(unpacked[0].norm_eps)) == config.norm_eps
    assert np.array_equal(packed[2], unpacked[2])
    assert np.array_equal(packed[2], logits)
    gates = (".beta", ".decay")
    assert digests(unpacked[1], without=gates) == digests(packed[1], without=gates)
    assert digests(unpacked[1]) == digests(dict(named_leaves(whole)))


def test_packed_and_unpacked_folders_of_transformers_hold_the_same_llama(tmp_path: Path) -> None:
    theirs = build_bitnet("bitlinear", family="llama", tied=False, vocabulary=320)
    save_bitnet(theirs, "bitlinear", tmp_path / "packed")
    numbers = load_file(tmp_path / "packed" / "model.safetensors")
    found: dict[str, Any] = {}
    for key, values in numbers.items():
        if f"{key}_scale" in numbers:
            # Bits 2 i and 2 i + 1 of row r are row r + i R / 4, plus 1.
            codes = np.concatenate([values >> 2 * i & 3 for i in range(4)]).astype(np.float32) - 1
            found[key] = codes / numbers[f"{key}_scale"]
        elif not key.endswith("_scale"):
            found[key] = values
    fields = json.loads((tmp_path / "packed" / "config.json").read_text())
    fields.pop("quantization_config")
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "unpacked" / "config.json").write_text(json.dumps(fields))
    save_file(found, tmp_path / "unpacked" / "model.safetensors")

    config, leaves, logits = read(tmp_path / "packed", BitnetMatrices)
    other, others, again = read(tmp_path / "unpacked")

    assert (config.weight_block, other.weight_block) == ("row", 64)
    assert np.array_equal(again, logits)
    for name, leaf in leaves.items():
        same = others[name]
        if isinstance(leaf, Ternary):
            assert isinstance(same, Ternary)
            assert np.array_equal(leaf.packed, same.packed)
            assert np.array_equal(np.unique(leaf.scales), np.unique(same.scales))
        else:
            assert tensor_digest(leaf) == tensor_digest(same)
