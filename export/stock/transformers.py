"""This file holds the export for transformers, and its reader; neither needs torch.

For the Hub, this package's own model directory is the best there is: small, and without loss. Stock transformers runs
the same model with dense weights, at eight times the bytes. Ternary matrices are float16, which holds every scale;
tables are float32, because an 8-bit code times a float16 scale has 18 bits.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.blocks.plain import plain
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
from nanochat.export.format import Progress
from nanochat.export.stock.folder import Array, Packing, load_folder, write_folder
from nanochat.weights import Dense, Int8, Latent, Spec, Stored, Ternary, Weights

__all__ = ["load_transformers", "write_transformers"]

_TYPES = {"ternary": "F16", "int8": "F32", "dense": "F32"}


def write_transformers(folder: Path, bundle: Bundle, *, progress: Progress | None = None) -> str:
    """Write a model for stock transformers, and return its name of the architecture, such as "qwen3"."""
    return write_folder(folder, bundle, _PACKING, progress)


def load_transformers(folder: Path, config: ModelConfig) -> tuple[ModelConfig, Weights[Stored]]:
    """Read what `write_transformers` has written of a model of that configuration: equal codes and scales.

    Dense leaves are views of the files. A block of zeros has the smallest scale.
    """
    return load_folder(folder, config, _PACKING)


def _dense(name: str, leaf: Stored) -> Array:
    leaf = plain(leaf)
    match leaf:
        case Ternary():
            codes = ternary.unpack(leaf.packed, columns=leaf.columns, name=name)
            return ternary.dequantize(codes, leaf.scales).astype(np.float16)
        case Int8():
            values = ternary.dequantize(leaf.codes, leaf.scales)
            _require_same(name, leaf, values)
            return values
        case Dense():
            return leaf.values
        case Latent():
            raise AssertionError


def _require_same(name: str, leaf: Int8, values: NDArray[np.float32]) -> None:
    """Refuse a table whose codes cannot be told from its numbers: the file could not be checked."""
    codes, scales = ternary.recover_rows(values, name=name)
    if not (np.array_equal(codes, leaf.codes) and np.array_equal(scales, leaf.scales)):
        raise ConfigError(
            f"{name} has rows whose largest code is not 127, so that dense numbers do not tell its codes: export it "
            "for nanochat, or round the table with quantize_table"
        )


def _recover(name: str, spec: Spec, arrays: Mapping[str, Array]) -> Stored:
    values = arrays["weight"].astype(np.float32, copy=False)
    if spec.kind == "dense":
        return Dense(values=values)
    if spec.kind == "int8":
        codes, scales = ternary.recover_rows(values, name=name)
        return Int8(codes=codes, scales=scales, activation_block=spec.activation_block)
    codes, scales = ternary.recover(values, block=spec.weight_block, name=name)
    return Ternary(
        packed=ternary.pack(codes, name=name),
        scales=scales,
        columns=spec.shape[1],
        activation_block=spec.activation_block,
    )


_PACKING = Packing(
    runtime="transformers",
    framework="pt",
    fields=lambda _: {},
    pack=lambda name, leaf: {"weight": _dense(name, leaf)},
    unpack=_recover,
    parts=lambda _, spec: [("weight", _TYPES[spec.kind], spec.shape)],
)
