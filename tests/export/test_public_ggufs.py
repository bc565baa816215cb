"""GGUF files of the architectures and types of public ternary models compute what their own programs compute."""

import platform
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nanochat.blocks.plain import plain
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.generation.engine import Engine
from nanochat.proof.golden import tensor_digest
from nanochat.proof.parity import UnroundedOps
from nanochat.proof.tolerances import TOLERANCES
from nanochat.weights import Dense, Stored, Weights, map_leaves, named_leaves
from tests.export import public_ggufs
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.export.public_ggufs import (
    hadamard,
    make_ternary,
    qwen35_model,
    qwen35_tensors,
    rotated,
    state_of,
    write_qwen35,
)
from tests.export.stock_models import rms_ratio

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)
IDS = np.random.default_rng(0).integers(0, 300, 40).tolist()


def read(path: Path) -> tuple[ModelConfig, dict[str, Stored], NDArray[np.float32]]:
    """The configuration, the leaves, and logits with activations that are not rounded."""
    config, weights, _ = load_foreign_gguf(path, read_gguf(path))
    ops = UnroundedOps()
    whole: Weights[Stored] = map_leaves(lambda _, leaf: plain(leaf), weights)
    logits = Engine(config, ops.prepare(whole), ops).logits(IDS)
    return config, dict(named_leaves(whole)), logits


def llama_cpp_logits(path: Path) -> NDArray[np.float32]:
    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as model:
        return model.logits(IDS)


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def qwen35(request: pytest.FixtureRequest) -> Any:
    model = qwen35_model(tied=request.param)
    make_ternary(model)
    return model


def transformers_logits(model: Any) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([IDS])).logits[0].numpy(), np.float32)


def test_qwen35_is_the_model_of_transformers(qwen35: Any, tmp_path: Path) -> None:
    config, _, logits = read(write_qwen35(tmp_path / "x.gguf", qwen35))

    assert config.delta_key_heads == 2
    assert config.layer_pattern == ("delta", "attention")
    assert rms_ratio(logits, transformers_logits(qwen35)) < 1e-5


@on_linux_x86
def test_qwen35_is_the_model_of_llama_cpp(qwen35: Any, tmp_path: Path) -> None:
    path = write_qwen35(tmp_path / "x.gguf", qwen35)

    _, _, logits = read(path)

    assert rms_ratio(logits, llama_cpp_logits(path)) < 1e-3


@pytest.mark.parametrize("wrong", ["blk.0.attn_qkv.weight", "blk.0.ssm_out.weight"])
def test_another_order_of_heads_is_another_model(
    qwen35: Any, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if heads of values stood where transformers has them.
    tiled = public_ggufs._tiled
    monkeypatch.setattr(
        public_ggufs,
        "_tiled",
        lambda name, values, **told: values if name == wrong else tiled(name, values, **told),
    )

    _, _, logits = read(write_qwen35(tmp_path / "x.gguf", qwen35))

    assert rms_ratio(logits, transformers_logits(qwen35)) > 0.1


@pytest.mark.parametrize("gates", ["F32", "BF16", "ternary"])
def test_every_type_holds_the_same_codes_and_scales(gates: str, tmp_path: Path) -> None:
    model = qwen35_model()
    make_ternary(model, gates=gates == "ternary")
    if gates == "BF16":
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "in_proj_a" in name or "in_proj_b" in name:
                    parameter.copy_(parameter.bfloat16().float())

    def written(kind: str) -> tuple[ModelConfig, dict[str, Stored], NDArray[np.float32]]:
        own = kind if gates == "ternary" else gates
        return read(write_qwen35(tmp_path / f"{kind}.gguf", model, kind, gates=own))

    config, leaves, logits = written("PQ2_0")
    assert (config.weight_block, config.activation_block) == (128, 128)
    assert config.table_format == "ternary"
    assert config.delta_gates == {"F32": "dense", "BF16": "bfloat16", "ternary": "ternary"}[gates]
    assert rms_ratio(logits, transformers_logits(model)) < 1e-5
    for kind in ("legacy Q2_0", "Q2_0", "PTQ1_0", "F32"):
        other_config, other_leaves, other_logits = written(kind)
        assert np.array_equal(other_logits, logits), kind
        if kind != "F32":
            assert other_config == config
            assert {n: tensor_digest(leaf) for n, leaf in other_leaves.items()} == {
                n: tensor_digest(leaf) for n, leaf in leaves.items()
            }


def test_a_model_without_zeros_is_the_same_in_one_bit(tmp_path: Path) -> None:
    model = qwen35_model()
    make_ternary(model, gates=True, zeros=False)

    def written(kind: str) -> tuple[ModelConfig, dict[str, Stored], NDArray[np.float32]]:
        return read(write_qwen35(tmp_path / f"{kind}.gguf", model, kind, gates=kind))

    config, leaves, logits = written("PQ2_0")
    other_config, other_leaves, other_logits = written("Q1_0")
    assert other_config == config
    assert {n: tensor_digest(leaf) for n, leaf in other_leaves.items()} == {
        n: tensor_digest(leaf) for n, leaf in leaves.items()
    }
    assert np.array_equal(other_logits, logits)
    assert rms_ratio(logits, transformers_logits(model)) < 1e-5


@on_linux_x86
def test_a_file_of_blocks_of_64_runs_in_llama_cpp_too(qwen35: Any, tmp_path: Path) -> None:
    path = write_qwen35(tmp_path / "x.gguf", qwen35, "Q2_0")

    _, _, logits = read(path)

    assert rms_ratio(logits, llama_cpp_logits(path)) < TOLERANCES["llama.cpp"].limit


def rotate(model: Any, block: int, generator: np.random.Generator) -> dict[str, Any]:
    """Write the matrices for rotated inputs; gives the keys that say so. The model computes something else then."""
    widths = sorted({p.shape[1] for n, p in model.named_parameters() if p.ndim == 2})
    signs = {w: generator.choice(np.array([-1, 1], np.float32), w) for w in widths}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "in_proj_a" not in name and "in_proj_b" not in name:
                own = signs[parameter.shape[1]]
                parameter.copy_(torch.from_numpy(rotated(parameter.numpy(), own, block)))
    return {
        "version": 1,
        "block_size": block,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit",
        "sign_widths": widths,
        "sign_values": [int(sign) for w in widths for sign in signs[w]],
    }


def write_rotated(path: Path, model: Any, block: int) -> dict[str, Any]:
    """Write a model with ternary matrices for rotated inputs, which it holds then; gives the keys that say so."""
    keys = rotate(model, block, np.random.default_rng(3))
    make_ternary(model)
    changes: dict[str, Any] = {f"prism.hadamard.{key}": value for key, value in keys.items()}
    changes["prism.hadamard.weight_names"] = [
        n for n in rotated_names() if n != "token_embd.weight"
    ]
    changes["prism.hadamard.inverse_weight_names"] = ["token_embd.weight"]
    changes["prism.hadamard.gdn_v_grouped"] = True
    write_qwen35(path, model, "PQ2_0", changes=changes, grouped=True)
    return keys


@pytest.fixture(scope="module")
def rotated_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A rotated file, and the model of transformers that computes the same without rotations."""
    block = 256
    path = tmp_path_factory.mktemp("rotated") / "x.gguf"
    plain_model, model = qwen35_model(), qwen35_model()
    # Only what is written is ternary, so the other model is made of it: a rotation is its own inverse.
    keys = write_rotated(path, model, block)
    signs = dict(
        zip(
            keys["sign_widths"],
            np.split(np.array(keys["sign_values"]), np.cumsum(keys["sign_widths"])[:-1]),
            strict=True,
        )
    )
    with torch.no_grad():
        pairs = zip(plain_model.named_parameters(), model.named_parameters(), strict=True)
        for (name, parameter), (_, written) in pairs:
            values = written.numpy()
            if values.ndim == 2 and "in_proj_a" not in name and "in_proj_b" not in name:
                own = signs[values.shape[1]].astype(np.float32)
                turned = values.reshape(len(values), -1, block) @ hadamard(block)
                values = (turned.reshape(values.shape) * own).astype(np.float32)
            parameter.copy_(torch.from_numpy(values))
    return path, plain_model


def rotated_names() -> list[str]:
    """The tensors of a file that are ternary."""
    model = qwen35_model()
    matrices = qwen35_tensors(state_of(model), lambda _, values: (values.shape, 0, EMPTY))
    return [
        name
        for name, (shape, _, _) in matrices.items()
        if len(shape) == 2 and not any(part in name for part in ("alpha", "beta", "conv1d"))
    ]


EMPTY = np.empty(0, np.uint8)


def test_a_rotated_file_is_the_model_without_rotations(rotated_file: tuple[Path, Any]) -> None:
    path, model = rotated_file

    config, _, logits = read(path)

    assert config.rotation_block == 256
    assert rms_ratio(logits, transformers_logits(model)) < 1e-5


def test_a_rotation_that_is_left_out_gives_noise(rotated_file: tuple[Path, Any]) -> None:
    path, model = rotated_file
    file = read_gguf(path)
    kept = {k: v for k, v in file.metadata.items() if not k.startswith("prism.")}

    config, weights, _ = load_foreign_gguf(path, replace(file, metadata=kept))
    ops = UnroundedOps()
    logits = Engine(config, ops.prepare(weights), ops).logits(IDS)

    assert config.rotation_block == 0
    assert rms_ratio(logits, transformers_logits(model)) > 0.5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 3, "version is 3, must be 1 or 2"),
        ("version", 2, "tied_output is False, with a tensor output.weight: .* version 2"),
        ("tied_output", True, "tied_output is True, with a tensor output.weight"),
        ("block_size", 96, "block_size is 96, must be a power of two"),
        ("block_size", 2048, "different multiples of block_size, which is 2048"),
        ("transform", "fourier", "transform is 'fourier', must be 'normalized"),
        ("axis", "output", "axis is 'output'"),
        ("sign_mode", "random", "sign_mode is 'random', must be 'explicit' or 'identity'"),
        ("sign_widths", [256, 512], "sign_values has 1536 signs, and sign_widths ask for 768"),
        ("sign_widths", [256, 256, 512, 512], "sign_widths is .*, must be different multiples"),
        ("sign_widths", [256, 1280], "sign_widths has no 768, and matrices have so many columns"),
        ("sign_widths", [256, np.inf], "sign_widths is .*, must be a list of whole numbers"),
        ("sign_values", [1e300] + [1] * 1535, r"sign_values holds 1e\+300 at 0"),
        ("sign_values", [1] * 1535 + [0], "sign_values holds 0 at 1535: signs are 1 and -1"),
        ("sign_values", [2] + [1] * 1535, "sign_values holds 2 at 0"),
        ("weight_names", ["blk.0.nothing"], "'blk.0.nothing', which is no tensor"),
        (
            "weight_names",
            ["output.weight"],
            "blk.0.attn_gate.weight is ternary and not in the list",
        ),
        ("weight_names", rotated_names(), "has 'token_embd.weight': .* no matrix is in both lists"),
        ("inverse_weight_names", ["output_norm.weight"], "only token_embd.weight is looked up"),
        ("inverse_weight_names", [], "token_embd.weight is ternary and not in the list"),
        ("gdn_v_grouped", 1, "gdn_v_grouped is 1, must be true or false"),
        ("gdn_v_grouped", False, r"blk.0.ssm_out.weight is rotated in an order of value heads"),
    ],
)
def test_other_rotations_are_refused(
    rotated_file: tuple[Path, Any], key: str, value: Any, message: str
) -> None:
    path, _ = rotated_file
    file = read_gguf(path)
    found = np.array(value) if isinstance(value, list) and key.startswith("sign") else value
    changed = {**file.metadata, f"prism.hadamard.{key}": found}

    with pytest.raises(FormatError, match=message):
        load_foreign_gguf(path, replace(file, metadata=changed))


def test_what_is_not_known_of_rotations_is_said(
    rotated_file: tuple[Path, Any], caplog: pytest.LogCaptureFixture
) -> None:
    path, _ = rotated_file
    file = read_gguf(path)

    load_foreign_gguf(path, replace(file, metadata={**file.metadata, "prism.hadamard.scale": 2.0}))

    assert "prism.hadamard.scale is not known here" in caplog.text


@pytest.mark.parametrize(
    "key",
    [
        "version",
        "block_size",
        "transform",
        "axis",
        "sign_mode",
        "sign_widths",
        "sign_values",
        "weight_names",
    ],
)
def test_rotations_without_a_key_are_refused(rotated_file: tuple[Path, Any], key: str) -> None:
    path, _ = rotated_file
    file = read_gguf(path)
    name = f"prism.hadamard.{key}"
    changed = {k: v for k, v in file.metadata.items() if k != name}

    with pytest.raises(FormatError, match=f"{name} is missing, must be "):
        load_foreign_gguf(path, replace(file, metadata=changed))


def test_an_embedding_that_no_list_has_is_refused(rotated_file: tuple[Path, Any]) -> None:
    path, _ = rotated_file
    file = read_gguf(path)
    changed = {k: v for k, v in file.metadata.items() if "inverse" not in k}

    with pytest.raises(FormatError, match=r"token_embd.weight is ternary and not in the list"):
        load_foreign_gguf(path, replace(file, metadata=changed))


def test_a_width_that_no_matrix_has_takes_no_memory(rotated_file: tuple[Path, Any]) -> None:
    path, _ = rotated_file
    file = read_gguf(path)
    changes: dict[str, Any] = {
        "prism.hadamard.sign_mode": "identity",
        "prism.hadamard.sign_widths": np.array([256, 512, 768, 2**60]),
    }

    _, weights, _ = load_foreign_gguf(path, replace(file, metadata={**file.metadata, **changes}))

    signs = dict(named_leaves(weights))["signs.network"]
    assert isinstance(signs, Dense)
    assert np.array_equal(signs.values, np.ones(512))


def test_what_is_listed_as_rotated_and_not_ternary_is_refused(
    rotated_file: tuple[Path, Any],
) -> None:
    path, _ = rotated_file
    file = read_gguf(path)
    key = "prism.hadamard.weight_names"
    names = [*file.metadata[key], "blk.0.ssm_alpha.weight"]  # type: ignore[misc]  # a list

    with pytest.raises(FormatError, match=r"ssm_alpha.weight is in the list .* and not ternary"):
        load_foreign_gguf(path, replace(file, metadata={**file.metadata, key: names}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_attention_interval": 3}, "by which block 1 has a delta rule"),
        ({"ssm.group_count": 4}, "delta_heads=6 is not a multiple of delta_key_heads=4"),
        ({"ssm.time_step_rank": 5}, "ssm.inner_size is 768, no multiple of .*, which is 5"),
        (
            {"ssm.group_count": 512, "ssm.time_step_rank": 512, "ssm.inner_size": 512},
            r"delta_key_heads \* delta_key_dim is 65536, and the tensors have 1280 at most",
        ),
        (
            {"ssm.inner_size": 6 * 1024},
            r"delta_heads \* delta_value_dim is 6144, and the tensors have 1280 at most",
        ),
        ({"nextn_predict_layers": 3}, "nextn_predict_layers is 3, of 3 blocks"),
    ],
)
def test_hyperparameters_that_contradict_each_other_are_refused(
    qwen35: Any, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    keys = {f"qwen35.{key}": value for key, value in changes.items()}
    path = write_qwen35(tmp_path / "x.gguf", qwen35, changes=keys)

    with pytest.raises(ConfigError, match=message):
        load_foreign_gguf(path, read_gguf(path))


def test_rates_that_are_positive_are_refused(qwen35: Any, tmp_path: Path) -> None:
    path = write_qwen35(tmp_path / "x.gguf", qwen35)
    file = read_gguf(path)
    tensor = file.tensors["blk.0.ssm_a"]
    values = -tensor.data.view(np.float32)
    changed = {**file.tensors, "blk.0.ssm_a": replace(tensor, data=values.view(np.uint8))}

    with pytest.raises(
        NumericError, match=r"ssm_a holds .*: rates of decay are stored as negative"
    ):
        load_foreign_gguf(path, replace(file, tensors=changed))


def test_gains_that_are_stored_less_one_are_warned_of(
    qwen35: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_qwen35(tmp_path / "x.gguf", qwen35)
    file = read_gguf(path)
    load_foreign_gguf(path, file)
    assert "gains of norms" not in caplog.text
    less = {
        name: replace(tensor, data=(tensor.data.view(np.float32) - np.float32(1)).view(np.uint8))
        for name, tensor in file.tensors.items()
        if name.endswith("norm.weight") and "ssm" not in name
    }

    load_foreign_gguf(path, replace(file, tensors={**file.tensors, **less}))

    assert "gains of norms are 0.01 in the middle, as llama.cpp stores them" in caplog.text


def test_blocks_that_predict_further_tokens_are_left_out(
    qwen35: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain_path = write_qwen35(tmp_path / "plain.gguf", qwen35)
    path = write_qwen35(
        tmp_path / "x.gguf",
        qwen35,
        changes={"qwen35.block_count": 4, "qwen35.nextn_predict_layers": 1},
        more={"blk.3.nextn.eh_proj.weight": ((256, 512), 0, np.zeros(256 * 512 * 4, np.uint8))},
    )

    _, _, logits = read(path)

    assert np.array_equal(logits, read(plain_path)[2])
    assert "1 tensors of blocks that predict further tokens are left out" in caplog.text


def test_many_zeros_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = qwen35_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                # What is rounded to the largest of 128 random numbers.
                parameter[torch.rand_like(parameter) < 0.7] = 0
    make_ternary(model)
    path = write_qwen35(tmp_path / "x.gguf", model, "PQ2_0")

    load_foreign_gguf(path, read_gguf(path))

    assert "% of the weights of " in caplog.text
    assert "a ternary model has about a third" in caplog.text
