"""A folder for transformers holds the model exactly, and is read without torch; what is no such folder is refused."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from nanochat import checkpoint
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError, ShapeError
from nanochat.export.export import export_model
from nanochat.export.stock.transformers import load_transformers, write_transformers
from nanochat.tensors import read_tensors, write_tensors
from nanochat.weights import Int8, Stored, map_leaves
from tests.export.stock_models import (
    BASE,
    CONFIGS,
    REFUSED,
    arrays,
    leave_out,
    make_bundle,
)

CONFIG = CONFIGS["qk-norm"]
Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_transformers(tmp_path / "model", make_bundle("qk-norm"))
    return tmp_path / "model"


@pytest.mark.parametrize("case", CONFIGS)
def test_a_model_is_read_as_it_was_written(case: str, tmp_path: Path) -> None:
    source = make_bundle(case)

    architecture = write_transformers(tmp_path, source)
    config, weights = load_transformers(tmp_path, source.config)

    assert architecture in ("qwen3", "llama", "qwen3_moe")
    assert config == dataclasses.replace(source.config, num_ahead=0)
    assert arrays(weights) == leave_out(arrays(source.weights), "ahead.")


def test_the_folder_has_what_the_hub_and_transformers_look_for(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())

    with safe_open(folder / "model.safetensors", "np") as file:
        metadata = file.metadata()

    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert metadata["format"] == "pt"
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["eos_token_id"] == [1, 6]
    assert "quantization_config" not in config


def test_matrices_are_narrow_and_tables_are_not(folder: Path) -> None:
    tensors = read_tensors(folder / "model.safetensors")

    assert tensors[Q].dtype == "F16"
    assert tensors["model.embed_tokens.weight"].dtype == "F32"
    assert tensors["model.norm.weight"].dtype == "F32"


@pytest.mark.parametrize("words", REFUSED)
def test_a_model_that_transformers_cannot_run_is_refused(words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"stock transformers cannot run this model: .*{words}"):
        write_transformers(tmp_path / "model", make_bundle(words))

    assert not (tmp_path / "model").exists()


def test_a_llama_of_heads_that_do_not_divide_the_width_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(**BASE | {"num_heads": 12, "num_kv_heads": 4}, qk_norm=False)
    source = dataclasses.replace(make_bundle("plain"), config=config)

    with pytest.raises(ConfigError, match="num_heads=12 without qk_norm: must divide the width"):
        write_transformers(tmp_path, source)


@pytest.mark.parametrize("case", ["num_streams=2", "qk-norm"])
def test_the_hub_is_given_the_model_directory(case: str, tmp_path: Path) -> None:
    source = make_bundle(case)

    exported = export_model(source, tmp_path / "x", kind="hf", verify=False)
    config, weights = checkpoint.load(tmp_path / "x")

    assert exported.written.kind == "nanochat"
    assert config == source.config
    assert arrays(weights) == arrays(source.weights)


def test_a_table_whose_codes_its_numbers_do_not_tell_is_refused(tmp_path: Path) -> None:
    def halve(name: str, leaf: Stored) -> Stored:
        if name != "embedding":
            return leaf
        assert isinstance(leaf, Int8)
        return dataclasses.replace(leaf, codes=leaf.codes // np.int8(4) * np.int8(2))

    plain = make_bundle("qk-norm")
    source = dataclasses.replace(plain, weights=map_leaves(halve, plain.weights))

    with pytest.raises(ConfigError, match="embedding has rows whose largest code is not 127"):
        write_transformers(tmp_path / "model", source)

    assert not (tmp_path / "model").exists()


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    write_transformers(
        tmp_path,
        make_bundle("experts"),
        progress=lambda *counts: told.append(counts),
    )

    assert told == [(done, len(told)) for done in range(1, len(told) + 1)]


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
            lambda t: t[Q].__setitem__((5, slice(3)), [0, 1, 2]),
            NumericError,
            "layers.0.mixer.q holds .* in columns 0 to 255 of row 5",
            id="not ternary",
        ),
        pytest.param(
            lambda t: t[Q].__setitem__((5, 1), np.nan),
            NumericError,
            r"layers.0.mixer.q holds nan at \[5, 1\]",
            id="NaN",
        ),
        pytest.param(
            lambda t: t["model.embed_tokens.weight"].__setitem__((5, 1), 0.1234567),
            NumericError,
            "embedding has row 5, which is not whole codes",
            id="no 8-bit row",
        ),
        pytest.param(
            lambda t: t["model.norm.weight"].__setitem__(7, np.inf),
            NumericError,
            r"norm holds inf at \[7\]",
            id="infinite norm",
        ),
        pytest.param(lambda t: t.pop(Q), FormatError, f"{Q} is missing", id="gone"),
        pytest.param(
            lambda t: t.update(x=np.zeros(3, np.float32)),
            FormatError,
            "1 tensors are no part of the model, the first is 'x'",
            id="another",
        ),
        pytest.param(
            lambda t: t.update({Q: t[Q][1:]}), ShapeError, r"has shape \[255, 256\]", id="shape"
        ),
        pytest.param(
            lambda t: t.update({Q: t[Q].astype(np.float32)}),
            FormatError,
            "q_proj.weight is of type F32, must be F16",
            id="type",
        ),
    ],
)
def test_a_changed_folder_is_refused(
    edit: Callable[[dict[str, Any]], None], error: type[Exception], message: str, folder: Path
) -> None:
    change(folder, edit)

    with pytest.raises(error, match=message):
        load_transformers(folder, CONFIG)


def test_a_configuration_that_transformers_cannot_run_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="num_streams=2"):
        load_transformers(folder, REFUSED["num_streams=2"])
