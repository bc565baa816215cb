"""A folder for mlx-lm holds the model exactly, and is read without MLX; what is no such folder is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat import checkpoint
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, InputError, NumericError, ShapeError
from nanochat.export.export import export_model
from nanochat.export.formats import FORMATS
from nanochat.export.stock.mlx import load_mlx, write_mlx
from nanochat.init import init
from nanochat.tensors import read_tensors, write_tensors
from nanochat.text.tokenizer import Tokenizer
from tests.export.stock_models import (
    BASE,
    CONFIGS,
    HYBRIDS,
    REFUSED,
    ROTATIONS,
    ROW,
    arrays,
    leave_out,
    make_bundle,
)

CONFIG = CONFIGS["qk-norm"]
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_mlx(tmp_path / "model", make_bundle("qk-norm"))
    return tmp_path / "model"


@pytest.mark.parametrize("case", [*CONFIGS, *HYBRIDS, *ROTATIONS])
def test_a_model_is_read_as_it_was_written(case: str, tmp_path: Path) -> None:
    source = make_bundle(case)

    architecture = write_mlx(tmp_path, source)
    config, weights = load_mlx(tmp_path, source.config)

    assert architecture == architecture_of(case)
    assert config == dataclasses.replace(source.config, num_ahead=0)
    assert arrays(weights) == leave_out(arrays(source.weights), "ahead.")


def architecture_of(case: str) -> str:
    if case in ROTATIONS:
        return "prism_hadamard_qwen35"
    if case in HYBRIDS:
        return "qwen3_5"
    config = CONFIGS[case]
    if config.num_experts:
        return "qwen3_moe"
    return "qwen3" if config.qk_norm else "llama"


def test_the_folder_has_what_the_hub_and_mlx_lm_look_for(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())

    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert config["model_type"] == "qwen3"
    assert config["quantization"] == {
        "group_size": 128,
        "bits": 2,
        "mode": "affine",
        "model.embed_tokens": {"group_size": 128, "bits": 8, "mode": "affine"},
    }
    assert config["quantization_config"] == config["quantization"]
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (0, [1, 6])


def test_groups_of_odd_widths_are_named(tmp_path: Path) -> None:
    write_mlx(tmp_path, make_bundle("rows"))

    quantization = json.loads((tmp_path / "config.json").read_text())["quantization"]

    # Columns: 256 of the heads' outputs, 320 of the stream, 352 of the hidden features.
    assert "model.layers.0.self_attn.o_proj" not in quantization
    assert quantization[Q]["group_size"] == 64
    assert quantization["model.layers.1.mlp.down_proj"]["group_size"] == 32


def test_the_chosen_generation_is_kept(tmp_path: Path) -> None:
    source = dataclasses.replace(make_bundle("qk-norm"), generation={"eos_token_id": 6, "top_k": 3})

    write_mlx(tmp_path, source)

    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["top_k"]) == (6, 3)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 6


def test_the_context_factor_is_in_the_base(tmp_path: Path) -> None:
    write_mlx(tmp_path, make_bundle("long context"))

    theta = json.loads((tmp_path / "config.json").read_text())["rope_theta"]

    assert theta == pytest.approx(5e5 * 4 ** (64 / 62))


def test_the_tokenizer_is_read_as_it_was_written(folder: Path) -> None:
    assert Tokenizer.load(folder).fingerprint == make_bundle("qk-norm").tokenizer.fingerprint


@pytest.mark.parametrize("words", REFUSED)
def test_a_model_that_mlx_lm_cannot_run_is_refused(words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"stock mlx-lm cannot run this model: .*{words}"):
        write_mlx(tmp_path / "model", make_bundle(words))

    assert not (tmp_path / "model").exists()


def test_all_reasons_are_given(tmp_path: Path) -> None:
    fields = BASE | ROW | {"num_streams": 4, "width": 300, "sub_norm": True}
    source = dataclasses.replace(make_bundle("rows"), config=ModelConfig(**fields))

    with pytest.raises(ConfigError, match=r"num_streams=4: .*; sub_norm=true"):
        write_mlx(tmp_path, source)


def test_columns_that_fill_no_group_are_refused(tmp_path: Path) -> None:
    config = ModelConfig(**BASE | ROW | {"width": 300})
    source = dataclasses.replace(make_bundle("rows"), config=config)

    with pytest.raises(ConfigError, match=r"matrices of \[300\] columns: it packs groups of 32"):
        write_mlx(tmp_path, source)


@pytest.mark.parametrize(
    ("case", "runtime"), [("num_streams=2", "auto"), ("qk-norm", "nanochat")], ids=["mHC", "asked"]
)
def test_what_mlx_lm_does_not_run_is_a_model_directory(
    case: str, runtime: str, tmp_path: Path
) -> None:
    source = make_bundle(case)
    options = FORMATS["mlx"].choose(runtime=runtime)

    exported = export_model(source, tmp_path / "x", kind="mlx", options=options, verify=False)
    config, weights = checkpoint.load(tmp_path / "x")

    assert exported.written.architecture == "nanochat"
    assert config == source.config
    assert arrays(weights) == arrays(source.weights)
    assert (tmp_path / "x" / "README.md").read_bytes() == source.card


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    write_mlx(tmp_path, make_bundle("experts"), progress=lambda *counts: told.append(counts))

    assert told == [(done, len(told)) for done in range(1, len(told) + 1)]


def test_latent_weights_are_refused(tmp_path: Path) -> None:
    latent = init(CONFIG, np.random.default_rng(0))
    source = dataclasses.replace(make_bundle("qk-norm"), weights=latent)

    with pytest.raises(InputError, match="latent"):
        write_mlx(tmp_path / "model", source)


def test_a_smaller_model_leaves_nothing_of_a_larger_one(tmp_path: Path) -> None:
    shard = tmp_path / "model-00001-of-00002.safetensors"
    shard.write_bytes(b"old")

    write_mlx(tmp_path, make_bundle("qk-norm"))

    assert not shard.exists()


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of a folder, with their checksums."""
    path = folder / "model.safetensors"
    tensors = {key: tensor.array().copy() for key, tensor in read_tensors(path).items()}
    edit(tensors)
    write_tensors(path, tensors, metadata={})


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        pytest.param(
            lambda t: t[f"{Q}.weight"].__setitem__((5, 3), 0xFFFFFFFF),
            NumericError,
            r"layers.0.mixer.q.codes holds the byte 0xff at \[5, 12\]",
            id="code 3",
        ),
        pytest.param(
            lambda t: t["model.embed_tokens.weight"].__setitem__((5, 3), 0),
            NumericError,
            "embedding.codes holds -128",
            id="table code -128",
        ),
        pytest.param(
            lambda t: t[f"{Q}.biases"].__setitem__((5, 1), 0),
            FormatError,
            "layers.0.mixer.q: the biases are not -1 times the scales",
            id="bias",
        ),
        pytest.param(
            lambda t: t["model.embed_tokens.biases"].__imul__(0.5),
            FormatError,
            "embedding: the biases are not -128 times the scales",
            id="table bias",
        ),
        pytest.param(
            lambda t: (
                t[f"{Q}.scales"].__setitem__((5, 1), 3),
                t[f"{Q}.biases"].__setitem__((5, 1), -3),
            ),
            FormatError,
            "layers.0.mixer.q: the scales of a block differ",
            id="two scales in a block",
        ),
        pytest.param(
            lambda t: (t[f"{Q}.scales"].fill(0.1), t[f"{Q}.biases"].fill(-0.1)),
            FormatError,
            "layers.0.mixer.q: .* float16 does not hold",
            id="scale beyond float16",
        ),
        pytest.param(
            lambda t: t["model.embed_tokens.scales"].fill(3e38),
            FormatError,
            "embedding: .* float16 does not hold",
            id="scale whose bias overflows",
        ),
        pytest.param(
            lambda t: t[f"{Q}.scales"].__setitem__((5, 1), np.nan),
            NumericError,
            r"layers.0.mixer.q.scales holds nan at \[5, 1\]",
            id="NaN",
        ),
        pytest.param(
            lambda t: t["model.norm.weight"].__setitem__(7, np.inf),
            NumericError,
            r"norm holds inf at \[7\]",
            id="infinite norm",
        ),
        pytest.param(
            lambda t: t.pop(f"{Q}.biases"), FormatError, f"{Q}.biases is missing", id="gone"
        ),
        pytest.param(
            lambda t: t.update(x=np.zeros(3, np.float32)),
            FormatError,
            "1 tensors are no part of the model, the first is 'x'",
            id="another",
        ),
        pytest.param(
            lambda t: t.update({f"{Q}.weight": t[f"{Q}.weight"][1:]}),
            ShapeError,
            r"q_proj.weight has shape \[255, 16\]",
            id="shape",
        ),
        pytest.param(
            lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].astype(np.float16)}),
            FormatError,
            "q_proj.scales is of type F16, must be F32",
            id="type",
        ),
    ],
)
def test_a_changed_folder_is_refused(
    edit: Callable[[dict[str, Any]], None], error: type[Exception], message: str, folder: Path
) -> None:
    change(folder, edit)

    with pytest.raises(error, match=message):
        load_mlx(folder, CONFIG)


def test_a_changed_byte_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)

    with pytest.raises(FormatError, match="have changed since they were written"):
        load_mlx(folder, CONFIG)


def test_a_configuration_that_mlx_lm_cannot_run_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="num_streams=2"):
        load_mlx(folder, REFUSED["num_streams=2"])


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no model\.safetensors: the download is incomplete"):
        load_mlx(tmp_path, CONFIG)
