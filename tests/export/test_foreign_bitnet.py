"""Our logits of other people's BitNet checkpoints are those of Hugging Face transformers, whatever the layout."""

import json
import logging
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nanochat import backends
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, ModelNotFoundError, NumericError, ShapeError
from nanochat.export import formats
from nanochat.export.folders.bitnet import BitnetMatrices
from nanochat.export.folders.read import load_foreign_folder
from nanochat.generation.engine import Engine
from nanochat.rotary import rotation
from nanochat.weights import Dense, Stored, Ternary, Weights
from tests.core.foreign_tokenizers import write_llama_3
from tests.export.foreign_models import (
    VOCABULARY,
    Family,
    Layout,
    build,
    greedy,
    logits,
    replace_tensors,
    rewrite,
    save,
)

IDS = np.random.default_rng(0).integers(0, VOCABULARY, 24).tolist()
LINEAR = "model.layers.0.self_attn.q_proj"

YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LLAMA_3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": np.linspace(1, 1.5, 16).tolist(),
    "long_factor": np.linspace(1, 6, 16).tolist(),
    "original_max_position_embeddings": 32,
}


def load(directory: Path) -> tuple[ModelConfig, Weights[Stored]]:
    fields = json.loads((directory / "config.json").read_text())
    return load_foreign_folder(directory, fields, BitnetMatrices)


def engine(directory: Path, backend: str = "reference") -> Engine:  # type: ignore[type-arg]
    config, weights = load(directory)
    ops = backends.get(backend)
    return Engine(config, ops.prepare(weights), ops)


def distances(directory: Path, expected: np.ndarray, backend: str = "reference") -> np.ndarray:
    """RMS of the difference over RMS of the expected logits, token by token."""
    difference = engine(directory, backend).logits(IDS) - expected
    ratio: np.ndarray = np.sqrt((difference**2).mean(axis=1) / (expected**2).mean(axis=1))
    return ratio


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(build("autobitlinear packed"), "autobitlinear packed", tmp_path)
    return tmp_path


@pytest.mark.parametrize("backend", ["reference", "numba"])
@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("family", get_args(Family))
def test_logits_are_those_of_transformers(
    tmp_path: Path, family: Family, layout: Layout, backend: str
) -> None:
    model = build(layout, family=family, tied=layout != "online")
    save(model, layout, tmp_path)

    ratios = distances(tmp_path, logits(model, IDS), backend)

    # Float32 additions in another order flip a rounding now and then, which its token and later ones show.
    assert np.median(ratios) < 1e-6
    assert ratios.max() < 2e-2


@pytest.mark.parametrize("layout", get_args(Layout))
def test_greedy_tokens_are_those_of_transformers(tmp_path: Path, layout: Layout) -> None:
    model = build(layout)
    save(model, layout, tmp_path)
    ours = engine(tmp_path)

    state, last = ours.prefill(IDS[:8], capacity=24)
    tokens = [int(last.argmax())]
    while len(tokens) < 8:
        tokens.append(int(ours.decode(tokens[-1:], state)[0].argmax()))

    assert tokens == greedy(model, IDS[:8], 8)


@pytest.mark.parametrize("layout", ["bitlinear", "autobitlinear packed", "online"])
def test_scales_that_float16_does_not_hold_are_rounded_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, layout: Layout
) -> None:
    model = build(layout, exact=False)
    save(model, layout, tmp_path)

    with caplog.at_level(logging.WARNING):
        ratios = distances(tmp_path, logits(model, IDS))

    assert "rounded to float16; the largest relative error is 2." in caplog.text
    assert ratios.max() < 2e-2


def test_a_model_in_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    model = build("autobitlinear packed")
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    save(model, "autobitlinear packed", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    replace_tensors(
        tmp_path, {key: t.bfloat16() for key, t in tensors.items() if t.is_floating_point()}
    )

    ratios = distances(tmp_path, logits(model, IDS))

    assert np.median(ratios) < 1e-6
    assert ratios.max() < 2e-2


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 1.0},
        {"rope_type": "linear", "factor": 4.0},
        LLAMA_3 | {"factor": 1.0},
        LLAMA_3,
        YARN | {"factor": 1.0},
        YARN,
        YARN | {"attention_factor": 0.8, "beta_fast": 4.0, "beta_slow": 0.5},
        YARN | {"mscale": 0.7, "mscale_all_dim": 0.4},
        LONG,
        LONG | {"factor": 3.0, "original_max_position_embeddings": 64},
    ],
    ids=lambda rope: ", ".join(
        f"{k}={v:.3}" for k, v in rope.items() if isinstance(v, str | float)
    ),
)
def test_scaled_and_partial_rotations_are_those_of_transformers(
    tmp_path: Path, rope: dict[str, Any]
) -> None:
    parameters = {**rope, "rope_theta": 10_000.0}
    model = build("autobitlinear packed", family="llama", rope_parameters=parameters)
    save(model, "autobitlinear packed", tmp_path)

    turned = rotation(load(tmp_path)[0])

    kind, config = rope["rope_type"], model.config
    expected, magnitude = ROPE_INIT_FUNCTIONS[kind](config, seq_len=config.max_position_embeddings)
    assert turned.frequencies == pytest.approx(expected.tolist(), rel=1e-6)
    assert turned.magnitude == pytest.approx(magnitude, rel=1e-6)
    # transformers has other factors for texts that are as short.
    if kind != "longrope" or rope["original_max_position_embeddings"] == 64:
        assert np.median(distances(tmp_path, logits(model, IDS))) < 1e-6


def test_a_model_in_several_files_is_the_same(tmp_path: Path) -> None:
    model = build("bitlinear")
    save(model, "bitlinear", tmp_path, shard="20KB")

    ratios = distances(tmp_path, logits(model, IDS))

    assert (tmp_path / "model.safetensors.index.json").exists()
    assert ratios.max() < 1e-6


def test_a_folder_brings_its_tokenizer(saved: Path) -> None:
    rewrite(saved, vocab_size=305, eos_token_id=None)
    replace_tensors(saved, {"model.embed_tokens.weight": torch.ones(305, 64)})
    write_llama_3(saved)

    bundle = formats.load(saved)
    config, weights, tokenizer = bundle.config, bundle.weights, bundle.tokenizer

    assert tokenizer.vocab_size == config.vocab_size == 305
    assert isinstance(weights.layers[0].network_site.norm, Dense)


def test_a_matrix_of_zeros_needs_no_scale(saved: Path) -> None:
    replace_tensors(saved, {f"{LINEAR}.weight": torch.full((16, 64), 0x55, dtype=torch.uint8)})

    _, weights = load(saved)

    leaf = weights.layers[0].mixer.q
    assert isinstance(leaf, Ternary)
    assert leaf.scales.min() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_act": []}, r"hidden_act is \[\]"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, r"rope_type is \['yarn'\]"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "parameters.factor is missing"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "original_max_position_embeddings is missing, must be a whole number",
        ),
        (
            {"rope_parameters": {**YARN, "truncate": False}},
            "truncate is False: must be true",
        ),
        (
            {
                "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
                "rope_parameters": None,
            },
            "original_max_position_embeddings is missing",
        ),
        ({"rope_scaling": {"type": "linear"}, "rope_parameters": None}, "factor is missing"),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"type": "linear", "factor": 4.0},
            },
            "rope_parameters.factor is 4.0, and 2.0 in rope_scaling",
        ),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "one value for all layer"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotate whole heads"),
        ({"partial_rotary_factor": 0.5}, "rotate whole heads"),
        ({"rope_scaling": "linear"}, "must be an object"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"head_dim": 32}, "must be their product"),
        ({"quantization_config": {"quant_method": "awq"}}, '"quant_method": "bitnet"'),
        ({"quantization_config": {"quant_method": "bitnet", "use_rms_norm": True}}, "use_rms_norm"),
        (
            {
                "quantization_config": {
                    "quant_method": "bitnet",
                    "modules_to_not_convert": ["lm_head", "model.layers.0"],
                }
            },
            "every linear is ternary",
        ),
        (
            {"quantization_config": {"quant_method": "bitnet", "modules_to_not_convert": []}},
            "without lm_head",
        ),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": "x"}}, "linear_class"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"hidden_size": 10**12}, "width=1000000000000"),
        ({"num_hidden_layers": 10**9}, "num_layers=1000000000"),
        ({"vocab_size": 10**9}, "vocab_size=1000000000"),
        ({"intermediate_size": -4}, "intermediate_size is -4"),
        ({"num_attention_heads": 4.0}, "num_attention_heads is 4.0"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"rope_theta": 10**400, "rope_parameters": None}, "rope_theta=inf"),
        ({"hidden_size": 10**30}, r"hidden_size is 1e\+30: must be a whole number"),
    ],
)
def test_what_this_package_does_not_compute_is_refused(
    saved: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(saved, **changes)

    with pytest.raises((ConfigError, FormatError), match=message) as error:
        formats.load(saved)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "kind", "message"),
    [
        pytest.param({f"{LINEAR}.weight": None}, FormatError, "1 weights are missing", id="weight"),
        pytest.param({f"{LINEAR}.weight_scale": None}, FormatError, "no magnitude", id="scale"),
        pytest.param(
            {f"{LINEAR}.weight": torch.zeros(64, 64, dtype=torch.uint8)},
            ShapeError,
            r"has shape \[64, 64\] but config.json asks for \[16, 64\]",
            id="shape",
        ),
        pytest.param(
            {f"{LINEAR}.weight": torch.full((16, 64), 0b11_00_01_10, dtype=torch.uint8)},
            NumericError,
            "pair 0b11 that stands for no code",
            id="code 3",
        ),
        pytest.param(
            {f"{LINEAR}.weight": torch.randn(64, 64)},
            NumericError,
            "several magnitudes",
            id="not ternary",
        ),
        pytest.param(
            {f"{LINEAR}.weight_scale": torch.tensor([float("nan")])},
            NumericError,
            "weight_scale holds nan",
            id="NaN",
        ),
        pytest.param(
            {f"{LINEAR}.weight_scale": torch.tensor([0.0])}, NumericError, "is 0: ", id="zero"
        ),
        pytest.param(
            {f"{LINEAR}.weight_scale": torch.tensor([-1.0])}, NumericError, "is -1: ", id="negative"
        ),
        pytest.param(
            {f"{LINEAR}.weight_scale": torch.tensor([1e9])},
            NumericError,
            "has the scale 1e[+]09",
            id="too large",
        ),
        pytest.param(
            {f"{LINEAR}.weight_scale": torch.ones(64)}, ShapeError, r"shape \[64\]", id="scales"
        ),
        pytest.param(
            {f"{LINEAR}.bias": torch.ones(64)},
            FormatError,
            "have no place in this model",
            id="bias",
        ),
        pytest.param(
            {f"{LINEAR}.rms_norm.weight": torch.ones(64)}, FormatError, "no place", id="norm"
        ),
        pytest.param(
            {"lm_head.weight": torch.ones(VOCABULARY, 64)}, FormatError, "lm_head", id="two heads"
        ),
        pytest.param(
            {"model.norm.weight": torch.full((64,), float("inf"))},
            NumericError,
            "model.norm.weight holds inf",
            id="infinite",
        ),
        pytest.param(
            {"model.norm.weight": torch.ones(64, dtype=torch.uint8)},
            FormatError,
            "is of type U8, must be F32 or F16 or BF16",
            id="type",
        ),
    ],
)
def test_damaged_tensors_are_refused(
    saved: Path, tensors: dict[str, torch.Tensor | None], kind: type[Exception], message: str
) -> None:
    replace_tensors(saved, tensors)

    with pytest.raises(kind, match=message):
        formats.load(saved)


def test_an_inverse_scale_of_zero_is_refused(tmp_path: Path) -> None:
    save(build("bitlinear"), "bitlinear", tmp_path)
    replace_tensors(tmp_path, {f"{LINEAR}.weight_scale": torch.zeros(1)})

    with pytest.raises(NumericError, match="weight_scale is 0: scales are positive"):
        formats.load(tmp_path)


def test_bitlinear_has_packed_weights(tmp_path: Path) -> None:
    save(build("autobitlinear"), "autobitlinear", tmp_path)
    rewrite(tmp_path, quantization_config={"quant_method": "bitnet"})

    with pytest.raises(FormatError, match="is of type F32, must be U8"):
        formats.load(tmp_path)


def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    save(build("bitlinear"), "bitlinear", tmp_path / "model", shard="20KB")
    path = tmp_path / "model" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../model-00001-of-00002.safetensors")
    path.write_text(json.dumps(index))

    with pytest.raises(
        FormatError, match=r"in '\.\./model-00001.*must be the name of a \.safetensors file"
    ):
        load(tmp_path / "model")


def test_a_truncated_file_is_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(FormatError, match="the file was cut"):
        formats.load(saved)


def test_other_types_of_model_are_refused_by_name(saved: Path) -> None:
    rewrite(saved, model_type="gpt2")

    with pytest.raises(FormatError, match=r"model_type is 'gpt2'.* bitnet, llama, "):
        formats.load(saved)


def test_packed_weights_without_a_word_of_it_are_refused(saved: Path) -> None:
    rewrite(saved, quantization_config=None)

    with pytest.raises(FormatError, match=r"no place in this model, the first is .*weight_scale'"):
        formats.load(saved)


def test_a_folder_without_a_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no model, which is a config.json"):
        formats.load(tmp_path)
