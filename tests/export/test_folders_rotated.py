"""Rotated MLX packs are the models that stock mlx-lm runs, and those of rotated GGUF files, to the bit."""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx_lm.utils import load_model
from numpy.typing import NDArray

from nanochat.blocks.plain import plain
from nanochat.errors import ConfigError, FormatError, ShapeError
from nanochat.export import formats
from nanochat.export.folders.affine import AffineMatrices
from nanochat.export.format import ModelFiles
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.generation.engine import Engine
from nanochat.proof.golden import tensor_digest
from nanochat.proof.parity import UnroundedOps
from nanochat.weights import Stored, Weights, map_leaves, named_leaves
from tests.core.foreign_tokenizers import write_llama_3
from tests.export import public_ggufs
from tests.export.folder_models import IDS, build, change, keep_ternary, read, save_mlx
from tests.export.public_ggufs import write_qwen35
from tests.export.stock_models import rms_ratio

# The smallest block that mlx-lm has, which divides every width.
BLOCK = 512
WIDTHS = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "linear_num_value_heads": 4,
}
SCHEMAS = {1: ("mlx-lm-text", ""), 2: ("mlx-vlm-qwen3_5", "language_model.")}
GATES = ("in_proj_a", "in_proj_b")


@pytest.fixture(scope="module", autouse=True)
def wide() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in WIDTHS.items():
            patch.setitem(public_ggufs.CONFIG, name, value)
        yield


def pack_fields(codes: Mapping[str, object], *, schema: int) -> dict[str, object]:
    """What a pack's ``config.json`` has besides that of its model."""
    return {
        "model_type": "prism_hadamard_qwen35",
        "schema_version": schema,
        "tensor_namespace": SCHEMAS[schema][0],
        "gdn_activation_layout": "grouped",
        "modules": [
            {
                "path": name.removesuffix(".weight"),
                "embedding": "embed_tokens" in name,
                "dtype": "float16",
                "block": BLOCK,
            }
            for name in codes
        ],
    }


def random_signs() -> dict[int, NDArray[np.float32]]:
    """By width."""
    generator = np.random.default_rng(3)
    return {w: generator.choice(np.array([-1, 1], np.float32), w) for w in (512, 1024)}


def save(directory: Path, *, tied: bool = False, schema: int = 2) -> None:
    """Write a random pack."""
    model = build("qwen3_5", tied=tied)
    codes = keep_ternary(model)
    fields, prefix = pack_fields(codes, schema=schema), SCHEMAS[schema][1]
    save_mlx(model, codes, directory, signs=random_signs(), fields=fields, prefix=prefix)


def mlx_logits(directory: Path) -> NDArray[np.float32]:
    model, _ = load_model(directory)
    return np.array(model(mx.array([IDS]))[0].astype(mx.float32))


@pytest.mark.parametrize("schema", [1, 2])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_logits_are_those_of_mlx_lm(tied: bool, schema: int, tmp_path: Path) -> None:
    save(tmp_path, tied=tied, schema=schema)

    config, _, logits = read(tmp_path, AffineMatrices)

    assert (config.rotation_block, config.weight_block) == (BLOCK, 128)
    assert config.table_format == "ternary"
    assert config.delta_gates == "float16"
    # It rounds activations to float16, and embeddings before they are turned back.
    assert rms_ratio(logits, mlx_logits(tmp_path)) < 5e-3


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_a_pack_holds_the_same_as_a_rotated_file(tied: bool, tmp_path: Path) -> None:
    model: Any = build("qwen3_5", tied=tied)
    codes, signs = keep_ternary(model), random_signs()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                for _ in range(8):
                    parameter.copy_(torch.from_numpy(np.log(np.exp(parameter.numpy()))))
    fields = pack_fields(codes, schema=2)
    save_mlx(model, codes, tmp_path / "mlx", signs=signs, fields=fields)
    keys = {
        "version": 2 if tied else 1,
        "block_size": BLOCK,
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit",
        "sign_widths": [512, 1024],
        "sign_values": [int(sign) for width in (512, 1024) for sign in signs[width]],
        "gdn_v_grouped": True,
        "inverse_weight_names": ["token_embd.weight"],
        "weight_names": [
            name
            for name, (shape, kind, _) in tensors_of(model).items()
            if kind == 142 and name != "token_embd.weight" and len(shape) == 2
        ],
        **({"tied_output": True} if tied else {}),
    }
    changes = {f"prism.hadamard.{key}": value for key, value in keys.items()}
    path = write_qwen35(tmp_path / "x.gguf", model, "PQ2_0", changes=changes, grouped=True)
    config, weights, _ = load_foreign_gguf(path, read_gguf(path))
    whole: Weights[Stored] = map_leaves(lambda _, leaf: plain(leaf), weights)
    ops = UnroundedOps()
    expected = Engine(config, ops.prepare(whole), ops).logits(IDS)

    own, leaves, logits = read(tmp_path / "mlx", AffineMatrices)

    assert replace(own, delta_gates="dense", norm_eps=config.norm_eps) == config
    assert np.array_equal(logits, expected)
    gates = (".beta", ".decay")
    assert {n: tensor_digest(v) for n, v in leaves.items() if not n.endswith(gates)} == {
        n: tensor_digest(v) for n, v in named_leaves(whole) if not n.endswith(gates)
    }


def tensors_of(model: Any) -> dict[str, Any]:
    def matrix(target: str, values: Any) -> Any:
        gate = "ssm_alpha" in target or "ssm_beta" in target
        return values.shape, 0 if gate else 142, None

    return public_ggufs.qwen35_tensors(public_ggufs.state_of(model), matrix, grouped=True)


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pack")
    save(directory)
    return directory


@pytest.fixture
def saved(pack: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pack, tmp_path / "pack")


def test_a_rotation_that_is_left_out_gives_noise(saved: Path) -> None:
    _, _, expected = read(saved, AffineMatrices)
    found = {f"language_model.{module}.signs": None for module in modules_of(saved)}
    change(saved, tensors=found, model_type="qwen3_5")

    config, _, logits = read(saved, AffineMatrices)

    assert config.rotation_block == 0
    assert rms_ratio(logits, expected) > 0.5


def modules_of(directory: Path) -> list[str]:
    fields = json.loads((directory / "config.json").read_text())
    return [record["path"] for record in fields["modules"]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schema_version": 3}, "schema_version is 3: must be 1 or 2"),
        ({"schema_version": None}, "schema_version is missing"),
        ({"schema_version": True}, "schema_version is True: must be 1 or 2"),
        ({"schema_version": 1}, "tensor_namespace is 'mlx-vlm-qwen3_5': must be 'mlx-lm-text' in"),
        ({"gdn_activation_layout": "tiled"}, "gdn_activation_layout is 'tiled': must be 'grouped'"),
        ({"quantization": {"bits": 2, "group_size": 64, "mode": "affine"}}, "quantization is"),
        ({"modules": []}, r"modules is \[\]: must be a list"),
        ({"modules": None}, "modules is missing"),
        ({"modules": [1]}, "modules has 1: must be an object"),
        ({"modules": [{"path": "lm_head"}]}, "must be an object of path, embedding, dtype and bl"),
    ],
)
def test_what_says_something_else_is_refused(
    fields: dict[str, Any], message: str, saved: Path
) -> None:
    change(saved, **fields)

    with pytest.raises(ConfigError, match=message) as error:
        read(saved, AffineMatrices)
    assert "config.json" in str(error.value)


def with_record(index: int, **changes: object) -> Any:
    def changed(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
        modules[index] |= changes
        return modules

    return changed


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (with_record(0, embedding=False), "only model.embed_tokens is an embedding"),
        (with_record(3, embedding=True), "only model.embed_tokens is an embedding"),
        (with_record(3, dtype="bfloat16"), "the dtype must be 'float16'"),
        (with_record(3, block=0), "has block 0 for .*: must be a power of two"),
        (with_record(3, block=768), "has block 768 for .*: must be a power of two"),
        (with_record(3, block=True), "has block True"),
        (with_record(3, block=1024), "has block 1024 for .*, and 512 for 'model.embed_tokens'"),
        (lambda modules: [{**one, "block": 2048} for one in modules], "rotation_block"),
        (lambda modules: [*modules, modules[1]], "twice"),
        (lambda modules: modules[:3] + modules[4:], "is ternary and not in the list of modules"),
        (with_record(3, path="model.layers.0.x"), "is ternary and not in the list of modules"),
        (
            lambda modules: [
                *modules,
                {**modules[1], "path": "model.layers.0.linear_attn.in_proj_a"},
            ],
            "in_proj_a is in the list of modules and no ternary matrix",
        ),
    ],
)
def test_incomplete_or_other_lists_of_modules_are_refused(
    turn: Any, message: str, saved: Path
) -> None:
    fields = json.loads((saved / "config.json").read_text())
    change(saved, modules=turn(fields["modules"]))

    with pytest.raises((ConfigError, FormatError), match=message):
        read(saved, AffineMatrices)


SIGNS = "language_model.model.layers.0.mlp.up_proj.signs"


def flip(values: Any) -> Any:
    values[9] = -values[9]
    return values


def set_to(value: float) -> Any:
    def changed(values: Any) -> Any:
        values[9] = value
        return values

    return changed


@pytest.mark.parametrize(
    ("tensors", "kind", "message"),
    [
        ({SIGNS: None}, FormatError, "model.layers.0.mlp.up_proj.signs is missing"),
        ({SIGNS: flip}, FormatError, "up_proj.signs are other signs than those of model.embed_tok"),
        (
            {SIGNS.replace("up_proj", "down_proj"): flip},
            FormatError,
            "down_proj.signs are other signs than those of model.layers.0.mlp.down_proj.signs",
        ),
        ({SIGNS: set_to(0)}, FormatError, "up_proj.signs holds 0 at 9: signs are 1 and -1"),
        ({SIGNS: set_to(2)}, FormatError, "up_proj.signs holds 2 at 9: signs are 1 and -1"),
        ({SIGNS: lambda values: values[:256]}, ShapeError, r"has shape \[256\] but .* \[512\]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_signs_are_refused(
    tensors: dict[str, Any], kind: type[Exception], message: str, saved: Path
) -> None:
    change(saved, tensors=tensors)

    with pytest.raises(kind, match=message):
        read(saved, AffineMatrices)


def test_a_pack_is_found(saved: Path) -> None:
    write_llama_3(saved)

    bundle = formats.load(saved)

    files = ModelFiles(saved)
    assert formats.detect(files).name == "mlx-ternary"
    assert formats.detect(files).config(files) == bundle.config
    assert bundle.config.rotation_block == BLOCK
