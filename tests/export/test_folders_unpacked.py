"""Checkpoints whose numbers are ternary, without a word of it, are read exactly, and everything else is refused."""

import json
import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from mlx_lm.models import minicpm
from safetensors.numpy import save_file
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError
from nanochat.export import formats
from nanochat.export.folders.unpacked import UnpackedNumbers
from nanochat.export.format import ModelFiles
from nanochat.weights import Dense, Ternary
from tests.core.foreign_tokenizers import write_llama_3
from tests.export.folder_models import (
    IDS,
    build,
    change,
    keep_ternary,
    read,
    save_unpacked,
    transformers_logits,
)
from tests.export.public_ggufs import CONFIG, numbers, ternary_part
from tests.export.stock_models import rms_ratio

LINEAR = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_5"])
def test_logits_are_those_of_transformers(
    family: str, tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = build(family, tied=tied)
    keep_ternary(model, dtype=torch.float16 if dtype == torch.float32 else dtype)

    config, leaves, logits = read(save_unpacked(model, tmp_path, dtype=dtype))

    assert (config.weight_block, config.activation_block) == (128, 128)
    assert config.table_format == "ternary"
    assert config.head_format == "table"
    assert isinstance(leaves["embedding"], Ternary)
    assert rms_ratio(logits, transformers_logits(model)) < 1e-5


@pytest.mark.parametrize(
    ("block", "width", "expected"),
    [(64, 256, 64), (128, 256, 128), (256, 256, 256), (0, 256, 256), (0, 96, "row"), (0, 192, 64)],
)
def test_blocks_are_the_widest_that_hold_every_scale(
    block: int, width: int, expected: object, tmp_path: Path
) -> None:
    model = build("llama", hidden_size=width, head_dim=width // 4)
    codes = keep_ternary(model, block=block)

    config, leaves, logits = read(save_unpacked(model, tmp_path))

    assert config.weight_block == expected
    assert config.activation_block == ("token" if expected == "row" else expected)
    assert rms_ratio(logits, transformers_logits(model)) < 1e-5
    leaf = leaves["layers.1.network.up"]
    assert isinstance(leaf, Ternary)
    own, scales = codes[LINEAR]
    assert np.array_equal(
        np.repeat(leaf.scales, width // leaf.scales.shape[1], axis=1),
        np.repeat(scales, width // scales.shape[1], axis=1),
    )
    assert own.shape == (512, width)


def test_scales_of_shards_of_rows_are_those_of_rows(tmp_path: Path) -> None:
    model = build("llama", hidden_size=96, head_dim=24)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                shards = [
                    torch.sign(torch.round(part / part.abs().mean())) * part.abs().mean().half()
                    for part in parameter.chunk(4)
                ]
                parameter.copy_(torch.cat(shards))
            parameter.copy_(parameter.half().float())

    config, _, logits = read(save_unpacked(model, tmp_path))

    assert config.weight_block == "row"
    assert rms_ratio(logits, transformers_logits(model)) < 1e-5


@pytest.mark.parametrize("gates", ["numbers", "ternary", "one"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_tables_and_gates_are_kept_as_they_are(
    gates: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = build("qwen3_5")
    but = {"numbers": ("in_proj_a", "in_proj_b"), "ternary": (), "one": ("in_proj_a",)}[gates]
    keep_ternary(model, dtype=dtype, but=(*but, "embed_tokens"))

    config, leaves, logits = read(save_unpacked(model, tmp_path, dtype=dtype))

    form = str(dtype).removeprefix("torch.")
    assert (config.table_format, config.head_format) == (form, "ternary")
    assert config.delta_gates == ("ternary" if gates == "ternary" else form)
    table = leaves["embedding"]
    assert isinstance(table, Dense)
    assert table.values.dtype == form
    assert rms_ratio(logits, transformers_logits(model)) < 1e-5


def vision_model(*, tied: bool) -> Any:
    """A random model of texts and pictures."""
    torch.manual_seed(0)
    vision = {
        "depth": 1,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": CONFIG["hidden_size"],
        "num_position_embeddings": 16,
    }
    text = {**CONFIG, "tie_word_embeddings": tied}
    config = Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    model = Qwen3_5ForConditionalGeneration(config)
    model.train(mode=False)
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_what_reads_pictures_or_predicts_further_tokens_is_left_out(
    tied: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = vision_model(tied=tied)
    keep_ternary(model, but=("in_proj_a", "in_proj_b", "visual"))
    save_unpacked(model, tmp_path)
    change(tmp_path, tensors={"mtp.fc.weight": np.ones((4, 4), np.float16)})

    _, _, logits = read(tmp_path)

    assert "tensors that read pictures or predict further tokens are left out, the" in caplog.text
    assert "the first is model.visual." in caplog.text
    assert rms_ratio(logits, transformers_logits(model)) < 1e-5


MINICPM: dict[str, Any] = {
    "model_type": "minicpm",
    "hidden_size": 256,
    "dim_model_base": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 320,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    # transformers has no such model: the code lies beside it.
    "auto_map": {"AutoModelForCausalLM": "modeling_minicpm.MiniCPMForCausalLM"},
}


def save_minicpm(directory: Path, *, ternary: bool = True, **fields: object) -> Any:
    """Write a random model, and give it as mlx-lm has it."""
    generator = np.random.default_rng(0)
    config = {**MINICPM, **fields}
    arguments: Any = minicpm.ModelArgs
    model = minicpm.Model(arguments.from_dict(config))
    found = {}
    parameters: Any = tree_flatten(model.parameters())
    for name, parameter in parameters:
        values = generator.standard_normal(parameter.shape).astype(np.float32)
        if values.ndim == 1:
            found[name] = (1 + 0.3 * values).astype(np.float16)
        elif ternary:
            found[name] = numbers(*ternary_part(values / 16)).astype(np.float16)
        else:
            found[name] = (values / 16).astype(np.float16)
    model.load_weights([(name, mx.array(v.astype(np.float32))) for name, v in found.items()])
    directory.mkdir(exist_ok=True)
    save_file(found, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return model


def test_minicpm_is_the_model_of_mlx_lm(tmp_path: Path) -> None:
    model = save_minicpm(tmp_path)

    config, _, logits = read(tmp_path)

    assert (config.embedding_scale, config.logit_scale) == (12, 4)
    assert config.residual_scale == pytest.approx(1.4 / 3**0.5)
    assert rms_ratio(logits, np.array(model(mx.array([IDS]))[0])) < 1e-5


def test_numbers_that_training_rounds_are_refused_with_the_first_block(tmp_path: Path) -> None:
    save_minicpm(tmp_path, ternary=False)

    with pytest.raises(
        NumericError,
        match=r"q_proj.weight holds .* and .* in row 0, columns 0 to 63: a ternary block has zeros",
    ):
        read(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = build("qwen3")
    keep_ternary(model)
    return save_unpacked(model, tmp_path)


def spoil(value: float) -> Any:
    def change_one(values: Any) -> Any:
        values[7, 200] = value
        return values

    return change_one


@pytest.mark.parametrize(
    ("tensors", "kind", "message"),
    [
        (
            {LINEAR: spoil(0.3)},
            NumericError,
            "up_proj.weight holds .* in row 7, columns 192 to 255",
        ),
        ({LINEAR: spoil(np.inf)}, NumericError, "holds inf in row 7, columns 192 to 255"),
        ({LINEAR: spoil(np.nan)}, NumericError, "holds nan in row 7, columns 192 to 255"),
        (
            {LINEAR: lambda values: values.astype(np.float32) * np.float32(1.001)},
            NumericError,
            "has the scale .* which float16 does not hold without loss",
        ),
        ({LINEAR: None}, FormatError, f"1 weights are missing, the first is {LINEAR}"),
        ({LINEAR: lambda values: values[:-1]}, Exception, r"has shape \[511, 256\]"),
        (
            {"model.layers.0.self_attn.q_proj.bias": np.ones(256, np.float16)},
            FormatError,
            "1 tensors have no place",
        ),
        ({"model.embed_tokens.weight": None}, FormatError, "embed_tokens.weight is missing"),
        (
            {"model.norm.weight": lambda values: values * np.float16(np.inf)},
            NumericError,
            "model.norm.weight holds",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_or_other_tensors_are_refused(
    tensors: dict[str, Any], kind: type[Exception], message: str, saved: Path
) -> None:
    change(saved, tensors=tensors)

    with pytest.raises(kind, match=message):
        read(saved)


def test_biases_of_zeros_change_nothing(saved: Path) -> None:
    _, _, logits = read(saved)
    change(saved, tensors={"model.layers.0.self_attn.q_proj.bias": np.zeros(256, np.float16)})

    assert np.array_equal(read(saved)[2], logits)


def test_the_rows_of_the_table_are_the_vocabulary(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, _, logits = read(saved)
    change(saved, vocab_size=352)

    config, _, again = read(saved)

    assert config.vocab_size == 320
    assert "vocab_size is 352 in config.json, and the embedding has 320 rows" in caplog.text
    assert np.array_equal(again, logits)


@pytest.mark.parametrize("wrong", ["transformers", "MLX"])
def test_gains_that_are_off_by_one_are_warned_of(
    wrong: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("qwen3_5")
    keep_ternary(model)
    save_unpacked(model, tmp_path)
    norms = [
        name
        for name, _ in model.named_parameters()
        if name.endswith("norm.weight") and "linear_attn" not in name
    ]
    convolution = "model.layers.0.linear_attn.conv1d.weight"
    second = "model.layers.2.linear_attn.conv1d.weight"
    read(tmp_path)
    assert "gains of norms" not in caplog.text
    if wrong == "transformers":
        change(tmp_path, tensors={name: lambda values: values + 1 for name in norms})
    else:
        turn = {name: lambda values: values.swapaxes(1, 2) for name in (convolution, second)}
        change(tmp_path, tensors=turn)

    read(tmp_path)

    middle = "1.9|2.0" if wrong == "transformers" else "0.0|-0.0"
    assert f"as {wrong} stores them" in caplog.text
    assert any(f"gains of norms are {part}" in caplog.text for part in middle.split("|"))


def test_many_zeros_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter[torch.rand_like(parameter) < 0.7] = 0
    keep_ternary(model)

    read(save_unpacked(model, tmp_path))

    assert "a ternary model has about a third" in caplog.text


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("qwen3_5", {"rope_parameters": None}, "rope_theta is missing"),
        ("qwen3_5", {"full_attention_interval": 3}, "layer_types has 'full_attention' for layer 1"),
        ("qwen3_5", {"layer_types": ["full_attention"]}, "must be a list of 3 of full_attention"),
        ("qwen3_5", {"layer_types": [1, 2, 3]}, "must be a list of 3 of full_attention"),
        ("qwen3_5", {"linear_num_key_heads": 4}, "is not a multiple of delta_key_heads=4"),
        ("qwen3_5", {"linear_num_value_heads": None}, "linear_num_value_heads is missing"),
        ("qwen3_5", {"attn_output_gate": False}, "attn_output_gate is False"),
        ("qwen3_5", {"num_experts": 8}, "num_experts is 8"),
        ("minicpm", {"scale_emb": None}, "scale_emb is missing"),
        ("minicpm", {"scale_depth": None}, "scale_depth is missing"),
        ("minicpm", {"dim_model_base": None}, "dim_model_base is missing"),
        ("minicpm", {"dim_model_base": 0}, "dim_model_base is 0"),
        ("minicpm", {"sparse_config": {"kernel_size": 32}}, "sparse_config is {'kernel_size'"),
        (
            "minicpm",
            {"rope_scaling": {"type": "longrope"}},
            "original_max_position_embeddings is m",
        ),
        ("llama", {"use_sliding_window": True}, "use_sliding_window is True"),
    ],
)
def test_what_is_missing_or_contradicts_is_refused(
    family: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if family == "minicpm":
        save_minicpm(tmp_path)
    else:
        model = build(family)
        keep_ternary(model)
        save_unpacked(model, tmp_path)
    change(tmp_path, **fields)

    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path)
    assert "config.json" in str(error.value)


def test_two_words_for_a_tied_head_that_differ_are_refused(tmp_path: Path) -> None:
    model = vision_model(tied=True)
    keep_ternary(model, but=("in_proj_a", "in_proj_b", "visual"))
    change(save_unpacked(model, tmp_path), tie_word_embeddings=False)

    with pytest.raises(ConfigError, match="tie_word_embeddings is False, and True in text_config"):
        read(tmp_path)


def test_two_models_in_a_folder_are_refused(tmp_path: Path) -> None:
    model = build("qwen3_5")
    keep_ternary(model)
    save_unpacked(model, tmp_path)
    change(tmp_path, tensors={"language_model.model.norm.weight": np.ones(256, np.float16)})

    with pytest.raises(FormatError, match="are one tensor by two names"):
        read(tmp_path)


def test_a_folder_is_found_and_brings_its_tokenizer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build("qwen3")
    keep_ternary(model)
    save_unpacked(model, tmp_path)
    write_llama_3(tmp_path)

    with caplog.at_level(logging.INFO):
        bundle = formats.load(tmp_path)

    files = ModelFiles(tmp_path)
    form = formats.detect(files)
    assert form.name == "unpacked"
    assert form.config(files) == bundle.config == read(tmp_path, UnpackedNumbers)[0]
    assert isinstance(bundle.config, ModelConfig)
    assert bundle.tokenizer.chat_template
    assert form.copied_bytes(files) * 8 <= (tmp_path / "model.safetensors").stat().st_size
    assert "rounded to 8 bits in blocks of 128 columns, where the programs" in caplog.text


def test_other_quantizations_are_refused_by_name(saved: Path) -> None:
    change(saved, quantization_config={"quant_method": "awq", "bits": 4})

    with pytest.raises(FormatError, match=r"quantization_config is {'quant_method': 'awq'"):
        formats.load(saved)
