"""Rotated models go to packs that stock mlx-lm runs, and that are read like those of others, to the bit."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.utils import load_model
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.blocks.plain import plain
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError
from nanochat.export.export import export_model
from nanochat.export.folders.affine import AffineMatrices
from nanochat.export.folders.read import read_foreign_config
from nanochat.export.format import ModelFiles
from nanochat.export.formats import FORMATS, detect, load
from nanochat.export.stock.mlx import load_mlx, write_mlx
from nanochat.export.stock.mlx_run import MlxLm
from nanochat.export.verify import verify_model
from nanochat.generation.engine import Engine
from nanochat.init import freeze
from nanochat.proof.golden import tensor_digests
from nanochat.proof.parity import UnroundedOps
from nanochat.weights import Dense, Stored, Weights, map_leaves
from tests.core.foreign_tokenizers import write_llama_3
from tests.export import public_ggufs
from tests.export.stock_models import (
    BASE,
    IDS,
    ROTATED,
    ROTATIONS,
    arrays,
    leave_out,
    make_bundle,
    reference_logits,
    rms_ratio,
)
from tests.export.test_folders_rotated import WIDTHS, pack_fields, save
from tests.parity.random_models import random_weights

CASE = "rotated, untied"


def logits_of(config: ModelConfig, weights: Weights[Stored]) -> NDArray[np.float32]:
    ops = ReferenceOps()
    whole: Weights[Stored] = map_leaves(lambda _, leaf: plain(leaf), weights)
    return Engine(config, ops.prepare(whole), ops).logits(IDS)


def without_manifest(folder: Path) -> Path:
    """What is left for whoever knows no ``nanochat.json``."""
    (folder / "nanochat.json").unlink()
    return folder


@pytest.mark.parametrize("case", ROTATIONS)
def test_an_export_is_proven_in_mlx_lm_and_read_back_to_the_bit(case: str, tmp_path: Path) -> None:
    source = make_bundle(case)
    expected = logits_of(source.config, source.weights)

    exported = export_model(source, tmp_path / "x", kind="mlx")

    assert exported.parity is not None
    assert exported.parity.ok
    assert exported.written.architecture == "prism_hadamard_qwen35"
    bundle = load(tmp_path / "x")
    assert detect(ModelFiles(tmp_path / "x")) is FORMATS["mlx"]
    assert bundle.config == source.config
    assert arrays(bundle.weights) == arrays(source.weights)
    assert np.array_equal(logits_of(bundle.config, bundle.weights), expected)
    verified = verify_model(tmp_path / "x", backend="reference")
    assert verified.golden is not None
    assert verified.golden < 1e-5
    assert verified.digests


@pytest.mark.parametrize("case", ["rotated", CASE, "rotated, dense tables"])
def test_a_pack_is_read_to_the_bit_without_its_manifest(case: str, tmp_path: Path) -> None:
    source = make_bundle(case)
    export_model(source, tmp_path / "x", kind="mlx", verify=False)

    bundle = load(without_manifest(tmp_path / "x"))

    assert detect(ModelFiles(tmp_path / "x")) is FORMATS["mlx-ternary"]
    assert bundle.config == source.config
    assert arrays(map_leaves(lambda _, leaf: plain(leaf), bundle.weights)) == arrays(source.weights)
    assert np.array_equal(
        logits_of(bundle.config, bundle.weights), logits_of(source.config, source.weights)
    )


@pytest.fixture
def wide() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WIDTHS.items():
            patch.setitem(public_ggufs.CONFIG, name, value)
        yield


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.usefixtures("wide")
def test_a_pack_of_others_goes_out_as_it_came(tied: bool, tmp_path: Path) -> None:
    save(tmp_path / "theirs", tied=tied, schema=1)
    write_llama_3(tmp_path / "theirs")
    source = load(tmp_path / "theirs")

    export_model(source, tmp_path / "ours", kind="mlx", verify=False)

    bundle = load(without_manifest(tmp_path / "ours"))
    assert bundle.config == source.config
    assert tensor_digests(bundle.weights) == tensor_digests(source.weights)
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    for key, values in theirs.items():
        assert values.shape == ours[key].shape, key
        assert np.array_equal(values, ours[key]), key
    packed = [key for key in theirs if key.endswith((".scales", ".biases", ".signs"))]
    assert [theirs[key].dtype for key in packed] == [ours[key].dtype for key in packed]
    settings = [
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("theirs", "ours")
    ]
    own = pack_fields(dict.fromkeys(modules_of(settings[1])), schema=1)
    assert {key: settings[1][key] for key in own} == own
    assert {key: settings[0][key] for key in own} | {"modules": own["modules"]} == own
    assert settings[0]["quantization"] == settings[1]["quantization"]
    assert sorted(modules_of(settings[0])) == sorted(modules_of(settings[1]))


def modules_of(settings: dict[str, Any]) -> list[str]:
    return [record["path"] for record in settings["modules"]]


def flip(folder: Path, *names: str) -> None:
    """Turn one sign of some modules; without names, of all that read the stream."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    width = len(tensors["model.embed_tokens.signs"])
    for key, values in tensors.items():
        if key.endswith(".signs") and (key in names or (not names and len(values) == width)):
            values[9] = -values[9]
    save_file(tensors, path)


def test_other_signs_are_another_model_to_mlx_lm_and_refused_here(tmp_path: Path) -> None:
    source = make_bundle(CASE)
    folder = tmp_path / "x"
    export_model(source, folder, kind="mlx", verify=False)
    right = reference_logits(CASE, rounded=False)
    assert rms_ratio(MlxLm(folder).logits(IDS), right) < 5e-3

    flip(folder)

    assert rms_ratio(MlxLm(folder).logits(IDS), right) > 0.02
    with pytest.raises(FormatError, match=r"model\.safetensors"):
        verify_model(folder, backend="reference")
    bundle = load(without_manifest(folder))
    assert arrays(map_leaves(lambda _, leaf: plain(leaf), bundle.weights)) != arrays(source.weights)


def test_signs_of_one_matrix_that_differ_are_refused(tmp_path: Path) -> None:
    write_mlx(tmp_path, make_bundle(CASE))
    flip(tmp_path, "model.layers.1.self_attn.q_proj.signs")

    with pytest.raises(FormatError, match=r"q_proj\.signs are other signs than those of model\.em"):
        load_mlx(tmp_path, ROTATIONS[CASE])


def test_mlx_lm_itself_misses_no_signs(tmp_path: Path) -> None:
    write_mlx(tmp_path, make_bundle(CASE))
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    del tensors["lm_head.signs"]
    save_file(tensors, path)

    with pytest.raises(ValueError, match="Missing Hadamard sign vector"):
        load_model(tmp_path)
    with pytest.raises(FormatError, match=r"lm_head\.signs is missing"):
        load_mlx(tmp_path, ROTATIONS[CASE])


def test_numbers_that_are_no_signs_are_not_written(tmp_path: Path) -> None:
    source = make_bundle(CASE)
    signs = source.weights.signs
    assert signs is not None
    assert isinstance(signs.stream, Dense)
    halves = dataclasses.replace(signs, stream=Dense(values=signs.stream.values / 2))
    changed = dataclasses.replace(source, weights=dataclasses.replace(source.weights, signs=halves))

    with pytest.raises(
        NumericError, match=r"signs\.stream holds -?0\.5 at 0: signs of a pack are 1"
    ):
        write_mlx(tmp_path / "x", changed)
    assert not (tmp_path / "x").exists()


PACK = BASE | ROTATED | {"num_layers": 2, "table_format": "ternary"}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "blocks of 256": (
        PACK | {"rotation_block": 256},
        "rotation_block=256: it rotates blocks of 512, 1024, 2048, 4096 or 8192 columns",
    ),
    "blocks of 16384": (
        PACK
        | {"rotation_block": 1 << 14, "width": 1 << 14, "num_heads": 256, "delta_heads": 256}
        | {"ffn_width": 1 << 14},
        "rotation_block=16384: it rotates blocks of 512",
    ),
    "no delta": (
        PACK | {"layer_pattern": ("attention",), "attention_gate": False, "rope_dims": 0},
        "rotation_block=512 without Gated DeltaNet: it rotates the inputs of hybrids only",
    ),
    "scales of 64": (
        PACK | {"weight_block": 64, "activation_block": 64},
        "weight_block=64 with rotation_block=512: its rotated matrices have a scale for 128 columns",
    ),
    "integer tables": (
        PACK | {"table_format": "int8"},
        'table_format="int8" with rotation_block=512: its rotated models have tables in ternary',
    ),
    "integer head": (
        PACK | {"head_format": "int8", "tie_embeddings": False},
        'head_format="int8" with rotation_block=512: its rotated models have tables in ternary',
    ),
    "tables in blocks": (PACK | {"table_format": "int8_32"}, 'table_format="int8_32": models are'),
    "streams": (PACK | {"num_streams": 2}, "num_streams=2: it has one residual stream"),
    "loops": (PACK | {"loop_count": 2}, "loop_count=2: it runs each layer once"),
    "another order": (PACK | {"layer_pattern": ("attention", "delta")}, "each n-th layer"),
    "no gates": (PACK | {"attention_gate": False}, "attention_gate=false: its attention has one"),
    "no norms of heads": (PACK | {"qk_norm": False}, "qk_norm=false: its attention has one"),
    "sub-norms": (PACK | {"sub_norm": True}, "sub_norm=true: it has no norms before output"),
    "squared ReLU": (PACK | {"activation": "relu2_glu"}, 'activation="relu2_glu": its networks'),
    "factor of embeddings": (
        PACK | {"embedding_scale": 12.0},
        "embedding_scale=12.0: models are written",
    ),
    "factor of sub-layers": (PACK | {"residual_scale": 0.5}, "residual_scale=0.5: models are"),
    "factor of logits": (PACK | {"logit_scale": 8.0}, "logit_scale=8.0: models are written"),
    "positions": (PACK | {"rope_type": "linear"}, 'rope_type="linear": models are written for it'),
    "factors": (
        PACK | {"rope_type": "factors", "rope_factors": (2.0,) * 8},
        'rope_type="factors": models are written for it',
    ),
    "magnitude": (
        PACK | {"rope_magnitude": 1.2},
        "rope_magnitude=1.2: its rotation has no magnitude",
    ),
    "one tap": (PACK | {"delta_conv_width": 1}, "delta_conv_width=1: its convolutions have two"),
}


@pytest.mark.parametrize(("fields", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_pack_cannot_hold_is_refused_before_anything_is_written(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = dataclasses.replace(make_bundle(CASE), config=ModelConfig(**fields))
    options = FORMATS["mlx"].choose(runtime="mlx-lm")

    with pytest.raises(ConfigError, match="stock mlx-lm cannot run this model: ") as error:
        export_model(source, tmp_path / "x", kind="mlx", options=options)

    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


# What a pack tells in its own words.
TOLD: list[dict[str, Any]] = [
    {"vocab_size": 320},
    {"width": 1024},
    {"num_layers": 4},
    {"num_heads": 16},
    {"num_kv_heads": 1},
    {"ffn_width": 512},
    {"head_dim": 128},
    {"context_length": 96},
    {"layer_pattern": ("delta", "delta", "attention"), "num_layers": 3},
    {"rope_theta": 5e5},
    {"rope_dims": 32},
    {"delta_heads": 16},
    {"delta_key_dim": 32},
    {"delta_value_dim": 128},
    {"delta_conv_width": 2},
    {"delta_key_heads": 8},
    {"delta_gates": "ternary"},
    {"tie_embeddings": False},
    {"table_format": "dense"},
    {"head_format": "dense", "tie_embeddings": False},
    {"norm_eps": 1e-3},
    {"rotation_block": 1024, "width": 1024, "num_heads": 16, "delta_heads": 16},
]
# What it has in others: a base, repeated scales; or what changes nothing that mlx-lm computes of such a model.
UNTOLD: list[dict[str, Any]] = [
    {"rope_scale": 4.0},
    {"weight_block": 256},
    {"activation_block": 64},
    {"rope_original_context": 32},
    {"rope_low": 2.0},
    {"rope_high": 16.0},
    {"experts_per_token": 1},
    {"expert_width": 256},
    {"shared_expert_width": 256},
    {"loop_prelude": 1},
    {"loop_coda": 1},
    {"num_ahead": 1},
    {"ahead_kind": "sequential"},
    {"coefficients": "dynamic"},
    {"mixer": "sinkhorn"},
    {"sinkhorn_iterations": 3},
    {"mixer_bias": -4.0},
]
# Of which there are no rotated models.
UNKNOWN: list[dict[str, Any]] = [
    {"num_experts": 2, "expert_width": 512},
    {"loop_count": 2, "exit_threshold": 0.5},
]


def with_options(changes: dict[str, Any]) -> Bundle:
    config = ModelConfig(**PACK | changes)
    weights = freeze(random_weights(config))
    return dataclasses.replace(make_bundle(CASE), config=config, weights=weights)


@pytest.mark.parametrize("changes", [*TOLD, *UNTOLD], ids=lambda changes: next(iter(changes)))
def test_an_option_is_that_of_mlx_lm_s_model(changes: dict[str, Any], tmp_path: Path) -> None:
    source = with_options(changes)
    ops = UnroundedOps()
    expected = Engine(source.config, ops.prepare(source.weights), ops).logits(IDS[:16])

    write_mlx(tmp_path, source)

    assert rms_ratio(MlxLm(tmp_path).logits(IDS[:16]), expected) < 5e-3
    config, weights = load_mlx(tmp_path, source.config)
    assert config == dataclasses.replace(source.config, num_ahead=0, ahead_kind="independent")
    assert arrays(weights) == leave_out(arrays(source.weights), "ahead.")
    if changes in TOLD:
        fields = json.loads((tmp_path / "config.json").read_text())
        assert read_foreign_config(tmp_path, fields, AffineMatrices) == source.config


@pytest.mark.parametrize("changes", UNKNOWN, ids=lambda changes: next(iter(changes)))
def test_there_is_no_rotated_model_with_an_option(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        with_options(changes)


def test_each_option_is_written_or_refused() -> None:
    usual = dataclasses.asdict(ModelConfig(**PACK))
    refused = [
        {name for name, value in fields.items() if value != usual[name]}
        for fields, _ in REFUSED.values()
    ]

    assert set().union(*refused, *TOLD, *UNTOLD, *UNKNOWN) == usual.keys()


def test_rotated_models_go_to_no_other_stock_runtime(tmp_path: Path) -> None:
    for kind, runtime in (("gguf", "llama.cpp"), ("hf", "transformers")):
        form = FORMATS["transformers" if kind == "hf" else kind]
        options = form.choose(runtime=runtime)

        with pytest.raises(ConfigError, match="rotation_block=512: it does not rotate the inputs"):
            export_model(
                make_bundle(CASE), tmp_path / f"x{form.suffix}", kind=kind, options=options
            )
