"""This file holds the export to the stock format of mlx-lm, and its reader; neither needs MLX.

A ternary matrix is MLX's affine format of 2 bits, a number being ``scale * q + bias``: q is the code plus 1, and the
bias minus the scale. The packed bytes are those of this package. An 8-bit table is the same in 8 bits, with q the code
plus 128, and ``bias = -128 * scale``. MLX has a scale for 32, 64 or 128 columns, so that ours are repeated. Scales and
biases are float32, because MLX computes in their type; in models with rotated inputs, whose embeddings mlx-lm rounds to
float16 whatever their type is, they are float16, as in the packs that others write.

References
----------
.. [1] github.com/ml-explore/mlx, mlx/backend/cpu/quantized.cpp, version 0.32.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.mlx.groups import GROUPS
from nanochat.blocks.plain import plain
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import FormatError
from nanochat.export.format import Progress
from nanochat.export.stock.folder import Array, Packing, load_folder, write_folder
from nanochat.tensors import file_type
from nanochat.ternary import require_finite
from nanochat.weights import DENSE_DTYPES, Dense, Int8, Latent, Spec, Stored, Ternary, Weights

__all__ = ["load_mlx", "write_mlx"]

# What is added to a code.
_TERNARY_ZERO, _TABLE_ZERO = 1, 128
_BITS = {"ternary": 2, "int8": 8}


def write_mlx(folder: Path, bundle: Bundle, *, progress: Progress | None = None) -> str:
    """Write a model for stock mlx-lm, and return its name of the architecture, such as "qwen3"."""
    return write_folder(folder, bundle, _packing(bundle.config), progress)


def load_mlx(folder: Path, config: ModelConfig) -> tuple[ModelConfig, Weights[Stored]]:
    """Read what `write_mlx` has written of a model of that configuration: equal codes and scales."""
    return load_folder(folder, config, _packing(config))


def _packing(config: ModelConfig) -> Packing:
    scales = DENSE_DTYPES["float16" if config.rotation_block else "float32"]
    return Packing(
        runtime="mlx-lm",
        framework="mlx",
        stack="switch_mlp",
        fields=_fields,
        pack=partial(_pack, scales=scales),
        unpack=_unpack,
        parts=partial(_parts, scales=scales),
    )


def _group(block: int) -> int:
    """Columns of MLX's groups in a block of ours."""
    return next(group for group in GROUPS if block % group == 0)


def _fields(modules: Mapping[str, Spec]) -> dict[str, object]:
    """How modules are quantised, in the words of ``config.json``."""
    default: dict[str, object] = {"group_size": GROUPS[0], "bits": 2, "mode": "affine"}
    quantization = dict(default)
    for module, spec in modules.items():
        if spec.kind != "dense":
            own = default | {"group_size": _group(spec.weight_block), "bits": _BITS[spec.kind]}
            if own != default:
                quantization[module] = own
    return {"quantization": quantization, "quantization_config": quantization}


def _pack(name: str, leaf: Stored, *, scales: np.dtype[Any]) -> dict[str, Array]:
    leaf = plain(leaf)
    match leaf:
        case Ternary():
            # A word's first number is in its lowest bits, and the words are little-endian: the bytes are ours.
            return _quantized(
                leaf.packed, leaf.scales.astype(scales), _TERNARY_ZERO, leaf.weight_block
            )
        case Int8():
            codes = leaf.codes.view(np.uint8) ^ np.uint8(_TABLE_ZERO)
            return _quantized(codes, leaf.scales.astype(scales), _TABLE_ZERO, leaf.weight_block)
        case Dense():
            # Channels, taps, and the one input of each channel.
            return {"weight": leaf.values[..., None] if _is_convolution(name) else leaf.values}
        case Latent():
            raise AssertionError


def _quantized(
    bytes_: NDArray[np.uint8], scales: NDArray[Any], zero: int, block: int
) -> dict[str, Array]:
    repeated = np.repeat(scales, block // _group(block), axis=1)
    return {
        "weight": np.ascontiguousarray(bytes_).view(np.uint32),
        "scales": repeated,
        # Exact: float16 has 11 bits, and `zero` is a power of two.
        "biases": repeated * scales.dtype.type(-zero),
    }


def _is_convolution(name: str) -> bool:
    return name.endswith("_conv")


def _parts(
    name: str, spec: Spec, *, scales: np.dtype[Any]
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    if spec.kind == "dense":
        shape = (*spec.shape, 1) if _is_convolution(name) else spec.shape
        yield "weight", file_type(DENSE_DTYPES[spec.dtype]), shape
        return
    *rows, columns = spec.shape
    yield "weight", "U32", (*rows, columns * _BITS[spec.kind] // 32)
    groups = columns // _group(spec.weight_block)
    for part in ("scales", "biases"):
        yield part, file_type(scales), (*rows, groups)


def _unpack(name: str, spec: Spec, arrays: Mapping[str, Array]) -> Stored:
    weight = arrays["weight"]
    if spec.kind == "dense":
        return Dense(values=weight.reshape(spec.shape))
    words = np.ascontiguousarray(weight).view(np.uint8)
    if spec.kind == "int8":
        return Int8(
            codes=(words ^ np.uint8(_TABLE_ZERO)).view(np.int8),
            scales=_scales(name, arrays, _TABLE_ZERO, num_blocks=1),
            activation_block=spec.activation_block,
        )
    num_blocks = spec.shape[1] // spec.weight_block
    return Ternary(
        packed=words,
        scales=_scales(name, arrays, _TERNARY_ZERO, num_blocks=num_blocks),
        columns=spec.shape[1],
        activation_block=spec.activation_block,
    )


def _scales(
    name: str, arrays: Mapping[str, Array], zero: int, *, num_blocks: int
) -> NDArray[np.float16]:
    """The scale of each block, from those of MLX's groups."""
    scales = arrays["scales"].astype(np.float32, copy=False)
    require_finite(scales, f"{name}.scales")
    groups = scales.reshape(len(scales), num_blocks, -1)
    with np.errstate(over="ignore"):
        narrow = groups[:, :, 0].astype(np.float16)
    if (groups != narrow[:, :, None]).any():
        raise FormatError(
            f"{name}: the scales of a block differ, or float16 does not hold them: this is another quantised model; "
            "export it again"
        )
    if not np.array_equal(arrays["biases"], scales * np.float32(-zero)):
        raise FormatError(
            f"{name}: the biases are not {-zero} times the scales, so that its numbers are not scales times whole "
            "codes around 0: this is another quantised model; export it again"
        )
    return narrow
