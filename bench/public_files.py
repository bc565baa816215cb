"""This file holds random weights in the shapes and formats of public models: files that are as large, and mean nothing.

The codes and scales of all files of a shape are the same, whatever their type: scales are equal in 256 columns, so that
each type holds them. Matrices are made one after the other: a file of 7 GB takes no more memory than one.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.export.gguf.container import NewTensor, write_container
from nanochat.export.gguf.metadata import QWEN35, hyperparameters
from nanochat.export.gguf.places import places
from nanochat.export.gguf.types import BF16, F32, PQ2_0, Q2_0, TQ2_0, TensorType, block_bytes
from nanochat.export.places import Place
from nanochat.shapes import shapes
from nanochat.weights import Spec, named_leaves
from nanochat.zoo.catalog import CATALOG

__all__ = ["KINDS", "SHAPES", "write_shape"]

KINDS = {"PQ2_0": PQ2_0, "Q2_0": Q2_0, "TQ2_0": TQ2_0}


def _shape(name: str) -> ModelConfig:
    config = CATALOG[name].config
    assert config is not None, name
    return config


_ROTATED = _shape("ternary-bonsai-2-27b")
# By what they are called in results. Those of 27B differ in nothing but rotations.
SHAPES = {
    "1.7B": _shape("ternary-bonsai-1.7b"),
    "8B": _shape("ternary-bonsai-8b"),
    "27B": replace(_ROTATED, rotation_block=0),
    "27B rotated": _ROTATED,
}
# The bytes that hold four codes.
_LEGAL = np.array(
    [byte for byte in range(256) if all(byte >> shift & 3 < 3 for shift in (0, 2, 4, 6))], np.uint8
)
_SHARED = 256


def write_shape(path: Path, config: ModelConfig, kind: TensorType) -> None:
    """A file of a model of one stream in that shape, with ternary matrices of a type."""
    architecture = QWEN35 if "delta" in config.layer_pattern else "qwen3"
    tensors = list(_tensors(config, architecture, kind))
    write_container(path, _metadata(config, architecture, tensors), tensors)


def _tensors(config: ModelConfig, architecture: str, kind: TensorType) -> Iterator[NewTensor]:
    specs = dict(named_leaves(shapes(config)))
    members: dict[str, list[tuple[str, Place]]] = {}
    for leaf, place in places(config, architecture, grouped=True).items():
        members.setdefault(place.tensor, []).append((leaf, place))
    for number, (tensor, leaves) in enumerate(members.items()):
        spec = specs[leaves[0][0]]
        rows = sum(specs[leaf].shape[0] for leaf, _ in leaves)
        shape = (rows, *spec.shape[1:])
        own = kind if spec.kind == "ternary" else {"bfloat16": BF16}.get(spec.dtype, F32)
        parts = partial(_parts, spec, shape, own, tensor, seed=number)
        yield NewTensor(name=tensor, kind=own, shape=shape, parts=parts)


def _parts(
    spec: Spec, shape: tuple[int, ...], kind: TensorType, tensor: str, *, seed: int
) -> Iterator[NDArray[np.uint8]]:
    generator = np.random.default_rng(seed)
    if spec.kind == "ternary":
        rows, columns = shape
        for start in range(0, rows, 8192):
            count = min(8192, rows - start)
            packed = _LEGAL[generator.integers(0, len(_LEGAL), (count, columns // 4), np.uint8)]
            scales = generator.uniform(0.75, 1.25, (count, columns // _SHARED)) / columns**0.5
            yield block_bytes(kind, packed, (1.2 * scales).astype(np.float16))
        return
    values = generator.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
    if tensor.endswith(".ssm_a"):
        values = -np.exp(values)
    elif "norm" in tensor:
        values = 1 + np.float32(0.1) * values
    if kind == BF16:
        yield (values.reshape(-1).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    else:
        yield values.reshape(-1).view(np.uint8)


def _metadata(config: ModelConfig, architecture: str, tensors: list[NewTensor]) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "general.architecture": architecture,
        **hyperparameters(config, architecture),
        **_vocabulary(config.vocab_size),
    }
    if config.rope_type == "yarn":
        # The magnitude follows from the factor.
        scaling = {
            "type": "yarn",
            "factor": np.float32(config.rope_scale),
            "original_context_length": np.uint32(config.rope_original_context),
        }
        keys |= {f"{architecture}.rope.scaling.{key}": value for key, value in scaling.items()}
        keys[f"{architecture}.rope.freq_base"] = np.float32(config.rope_theta)
    if config.rotation_block:
        keys |= _rotation(config, tensors)
    return keys


def _vocabulary(size: int) -> dict[str, Any]:
    """One token for each byte, and tokens that no text has."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    pieces = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    pieces.append("<|endoftext|>")
    kinds = [1] * 256 + [3] + [5] * (size - 257)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": pieces + [f"<unused {n}>" for n in range(257, size)],
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.eos_token_id": np.uint32(256),
    }


def _rotation(config: ModelConfig, tensors: list[NewTensor]) -> dict[str, Any]:
    matrices = [t.name for t in tensors if t.kind in KINDS.values()]
    widths = sorted({t.shape[1] for t in tensors if t.kind in KINDS.values()})
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.int32), sum(widths))
    keys = {
        "version": np.uint32(1),
        "block_size": np.uint32(config.rotation_block),
        "transform": "normalized-sylvester-walsh-hadamard",
        "axis": "input-last-dimension",
        "sign_mode": "explicit",
        "sign_widths": np.array(widths, np.int32),
        "sign_values": signs,
        "weight_names": [name for name in matrices if name != "token_embd.weight"],
        "inverse_weight_names": ["token_embd.weight"],
        "gdn_v_grouped": np.bool_(True),
    }
    return {f"prism.hadamard.{key}": value for key, value in keys.items()}
