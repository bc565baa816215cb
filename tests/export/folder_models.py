"""This file holds tiny models in the folders of public ternary models: of transformers, and of MLX, byte by byte."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nanochat.blocks.plain import plain
from nanochat.config import ModelConfig
from nanochat.export.folders.affine import AffineMatrices
from nanochat.export.folders.packing import Packing
from nanochat.export.folders.read import load_foreign_folder
from nanochat.export.folders.unpacked import UnpackedNumbers
from nanochat.generation.engine import Engine
from nanochat.proof.parity import UnroundedOps
from nanochat.weights import Stored, Weights, map_leaves, named_leaves
from tests.export.foreign_ggufs import ROWS
from tests.export.public_ggufs import numbers, qwen35_model, ternary_part

__all__ = [
    "IDS",
    "build",
    "change",
    "keep_ternary",
    "read",
    "save_mlx",
    "save_unpacked",
    "transformers_logits",
]

IDS = np.random.default_rng(0).integers(0, 300, 40).tolist()
Arrays = dict[str, NDArray[Any]]
Codes = Mapping[str, tuple[NDArray[np.int8], NDArray[np.float16]]]
_CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}


def build(family: str, *, tied: bool = False, **fields: object) -> PreTrainedModel:
    """A random model in float32."""
    if family == "qwen3_5":
        return qwen35_model(tied=tied)
    model_class, config_class = _CLASSES[family]
    sizes: dict[str, Any] = {
        "vocab_size": ROWS,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 128,
        "tie_word_embeddings": tied,
        **fields,
    }
    if family == "qwen2":
        sizes.pop("head_dim")
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config_class(**sizes))
    model.train(mode=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model


def keep_ternary(
    model: PreTrainedModel,
    *,
    block: int = 128,
    dtype: torch.dtype = torch.float16,
    but: tuple[str, ...] = ("in_proj_a", "in_proj_b"),
) -> Codes:
    """Have a model hold numbers of that type alone, and ternary matrices; gives their codes and scales, by name."""
    found = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and not any(part in name for part in but):
                codes, scales = ternary_part(parameter.numpy(), block or parameter.shape[1])
                scales = torch.from_numpy(scales).to(dtype).to(torch.float16).numpy()
                found[name] = codes, scales
                parameter.copy_(torch.from_numpy(numbers(codes, scales)))
            parameter.copy_(parameter.to(dtype).float())
    return found


def save_unpacked(
    model: PreTrainedModel, directory: Path, *, dtype: torch.dtype = torch.float16
) -> Path:
    """Write a model as transformers does."""
    # The model itself would be left with frequencies of that type.
    whole: Any = copy.deepcopy(model)
    whole.to(dtype).save_pretrained(directory)
    return directory


def save_mlx(
    model: PreTrainedModel,
    codes: Codes,
    directory: Path,
    *,
    group: int = 128,
    signs: Mapping[int, NDArray[np.float32]] | None = None,
    fields: Mapping[str, object] | None = None,
    prefix: str = "language_model.",
) -> Path:
    """Write a model as mlx-lm has it; matrices of which there are codes in 2 bits, with signs by their columns."""
    is_qwen35 = model.config.model_type == "qwen3_5_text"
    found: Arrays = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        key = f"{prefix}{name}" if is_qwen35 else name
        if name in codes:
            module = key.removesuffix(".weight")
            parts = affine(*codes[name], group=group)
            found |= {f"{module}.{part}": array for part, array in parts.items()}
            if signs is not None:
                found[f"{module}.signs"] = signs[values.shape[1]]
            continue
        if is_qwen35 and "norm.weight" in name and "linear_attn.norm" not in name:
            # In float32, as float16 would round it.
            found[key] = values + np.float32(1)
            continue
        if "conv1d" in name:
            values = values.transpose(0, 2, 1)
        kind = np.float32 if "A_log" in name else np.float16
        found[key] = np.ascontiguousarray(values, kind)
    config = json.loads(model.config.to_json_string(use_diff=False))
    # The library runs by this alone.
    config["full_attention_interval"] = getattr(model.config, "full_attention_interval", 4)
    if is_qwen35:
        from tests.export.public_ggufs import CONFIG

        config["full_attention_interval"] = CONFIG["full_attention_interval"]
        config = {
            "model_type": "qwen3_5",
            "text_config": config,
            "tie_word_embeddings": model.config.tie_word_embeddings,
        }
    config["quantization"] = {"group_size": group, "bits": 2, "mode": "affine"}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**config, **(fields or {})}))
    save_file(found, directory / "model.safetensors", metadata={"format": "mlx"})
    return directory


def affine(codes: NDArray[np.int8], scales: NDArray[np.float16], *, group: int = 128) -> Arrays:
    """Words, scales and biases of a matrix."""
    rows, columns = codes.shape
    words = np.zeros((rows, columns // 16), np.uint32)
    for i in range(16):
        words |= (codes[:, i::16] + 1).astype(np.uint32) << np.uint32(2 * i)
    repeated = np.repeat(scales, columns // group // scales.shape[1], axis=1)
    return {"weight": words, "scales": repeated, "biases": -repeated}


def change(
    directory: Path, *, tensors: Mapping[str, object] | None = None, **fields: object
) -> Path:
    """Replace fields of ``config.json`` and tensors; None deletes one, and a function changes it."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    if tensors:
        file = directory / "model.safetensors"
        found: dict[str, Any] = load_file(file)
        for key, value in tensors.items():
            found[key] = value(found[key].copy()) if callable(value) else value
        save_file({k: np.ascontiguousarray(v) for k, v in found.items() if v is not None}, file)
    return directory


def read(
    directory: Path, packing: type[Packing] = UnpackedNumbers
) -> tuple[ModelConfig, dict[str, Stored], NDArray[np.float32]]:
    """The configuration, the leaves, and logits with activations that are not rounded."""
    fields = json.loads((directory / "config.json").read_text())
    config, weights = load_foreign_folder(directory, fields, packing)
    whole: Weights[Stored] = map_leaves(lambda _, leaf: plain(leaf), weights)
    ops = UnroundedOps()
    return config, dict(named_leaves(whole)), Engine(config, ops.prepare(whole), ops).logits(IDS)


def read_mlx(
    directory: Path,
) -> tuple[ModelConfig, dict[str, Stored], NDArray[np.float32]]:
    return read(directory, AffineMatrices)


def transformers_logits(model: Any) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(model(torch.tensor([IDS])).logits[0].numpy(), np.float32)
