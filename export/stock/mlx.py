"""This file holds the export to the stock format of mlx-lm, and its reader; neither needs MLX.

A ternary matrix is MLX's affine format of 2 bits, a number being ``scale * q + bias``: q is the code plus 1, and the
bias minus the scale. The packed bytes are those of this package. An 8-bit table is the same in 8 bits, with q the code
plus 128, and ``bias = -128 * scale``. MLX has a scale for 32, 64 or 128 columns, so that ours are repeated. Scales and
biases are float32, because MLX computes in their type.

References
----------
.. [1] github.com/ml-explore/mlx, mlx/backend/cpu/quantized.cpp, version 0.32.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from nanochat.bundle import Bundle
from nanochat.checkpoint import require_complete, require_legal
from nanochat.config import ModelConfig
from nanochat.errors import FormatError
from nanochat.export.format import Progress
from nanochat.export.stock.architectures import stock_architecture
from nanochat.export.stock.folder import (
    StockTensors,
    exported_leaves,
    module_name,
    other_files,
    read_config,
    stock_texts,
)
from nanochat.shapes import shapes
from nanochat.tensors import save_tensors
from nanochat.ternary import require_finite
from nanochat.weights import (
    Dense,
    Int8,
    Latent,
    Spec,
    Stored,
    Ternary,
    Weights,
    map_leaves,
    named_leaves,
)

__all__ = ["load_mlx", "write_mlx"]

# Columns of a group in MLX, the best first.
_GROUPS = (128, 64, 32)
# What is added to a code.
_TERNARY_ZERO, _TABLE_ZERO = 1, 128


def write_mlx(folder: Path, bundle: Bundle, *, progress: Progress | None = None) -> str:
    """Write a model for stock mlx-lm, and return its name of the architecture, such as "qwen3".

    Parameters
    ----------
    folder : Path
        Made if it is not there; a model that it holds is replaced.
    progress : callable, optional
        Called with the tensors packed and the tensors to pack.
    """
    texts = stock_texts(bundle, "mlx-lm")
    require_complete(bundle.config, bundle.weights)
    default: dict[str, object] = {"group_size": _GROUPS[0], "bits": 2, "mode": "affine"}
    quantization = dict(default)
    tensors: dict[str, NDArray[np.generic]] = {}
    modules = _modules(exported_leaves(bundle))
    for done, (module, members) in enumerate(modules.items(), 1):
        parts = [_pack(leaf) for _, leaf in members]
        for key in parts[0]:
            arrays = [part[key] for part in parts]
            tensors[f"{module}.{key}"] = np.stack(arrays) if _is_stacked(module) else arrays[0]
        own = _quantization(members[0][1])
        if own not in (None, default):
            quantization[module] = own
        if progress is not None:
            progress(done, len(modules))
    texts["config.json"] |= {"quantization": quantization, "quantization_config": quantization}
    save_tensors(
        folder, tensors, texts=texts, others=other_files(bundle), metadata={"format": "mlx"}
    )
    return str(texts["config.json"]["model_type"])


def load_mlx(folder: Path, config: ModelConfig) -> tuple[ModelConfig, Weights[Stored]]:
    """Read what `write_mlx` has written for mlx-lm: equal codes and scales.

    Parameters
    ----------
    config : ModelConfig
        What the model was exported from: mlx-lm's own configuration does not say all of it.

    Returns
    -------
    config : ModelConfig
        The same without the heads that are for training only.
    weights : Weights[Stored]
        Read-only views of the files, where they can be.
    """
    config = read_config(config)
    stock_architecture(config, "mlx-lm")
    specs = shapes(config)
    tensors = StockTensors(folder)
    leaves: dict[str, Stored] = {}
    for module, members in _modules(dict(named_leaves(specs))).items():
        stacked = (len(members),) if _is_stacked(module) else ()
        arrays = {
            part: tensors.take(f"{module}.{part}", dtype=dtype, shape=(*stacked, *shape))
            for part, dtype, shape in _parts(members[0][1])
        }
        for index, (name, spec) in enumerate(members):
            own = {part: array[index] if stacked else array for part, array in arrays.items()}
            leaves[name] = _unpack(name, spec, own)
    tensors.require_none_left()
    for name, leaf in leaves.items():
        require_legal(name, leaf)
    return config, map_leaves(lambda name, _: leaves[name], specs)


L = TypeVar("L")


def _modules(leaves: Mapping[str, L]) -> dict[str, list[tuple[str, L]]]:
    """The leaves of each module of mlx-lm: one, or the same matrix of all experts in their order."""
    modules: dict[str, list[tuple[str, L]]] = {}
    for name, leaf in leaves.items():
        module = re.sub(r"\.experts\.\d+\.", ".switch_mlp.", module_name(name))
        modules.setdefault(module, []).append((name, leaf))
    return modules


def _is_stacked(module: str) -> bool:
    return ".switch_mlp." in module


def _group(columns: int) -> int:
    return next(group for group in _GROUPS if columns % group == 0)


def _quantization(leaf: Stored) -> dict[str, object] | None:
    """How a module is quantised, in the words of ``config.json``."""
    match leaf:
        case Ternary():
            return {"group_size": _group(leaf.columns), "bits": 2, "mode": "affine"}
        case Int8():
            return {"group_size": _group(leaf.codes.shape[1]), "bits": 8, "mode": "affine"}
    return None


def _pack(leaf: Stored) -> dict[str, NDArray[np.generic]]:
    match leaf:
        case Ternary():
            # A word's first number is in its lowest bits, and the words are little-endian: the bytes are ours.
            return _quantized(leaf.packed, leaf.scales, _TERNARY_ZERO, columns=leaf.columns)
        case Int8():
            codes = leaf.codes.view(np.uint8) ^ np.uint8(_TABLE_ZERO)
            return _quantized(codes, leaf.scales[:, None], _TABLE_ZERO, columns=codes.shape[1])
        case Dense():
            return {"weight": leaf.values}
        case Latent():
            raise AssertionError


def _quantized(
    bytes_: NDArray[np.uint8], scales: NDArray[np.float16], zero: int, *, columns: int
) -> dict[str, NDArray[np.generic]]:
    groups = columns // _group(columns) // scales.shape[1]
    repeated = np.repeat(scales.astype(np.float32), groups, axis=1)
    return {
        "weight": np.ascontiguousarray(bytes_).view(np.uint32),
        "scales": repeated,
        # Exact: float16 has 11 bits, and `zero` is a power of two.
        "biases": repeated * np.float32(-zero),
    }


def _parts(spec: Spec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of the tensors of a module."""
    if spec.kind == "dense":
        yield "weight", "F32", spec.shape
        return
    rows, columns = spec.shape
    bits = 2 if spec.kind == "ternary" else 8
    yield "weight", "U32", (rows, columns * bits // 32)
    yield "scales", "F32", (rows, columns // _group(columns))
    yield "biases", "F32", (rows, columns // _group(columns))


def _unpack(name: str, spec: Spec, arrays: Mapping[str, NDArray[np.generic]]) -> Stored:
    weight = arrays["weight"]
    if spec.kind == "dense":
        return Dense(values=weight.astype(np.float32, copy=False))
    words = np.ascontiguousarray(weight).view(np.uint8)
    if spec.kind == "int8":
        return Int8(
            codes=(words ^ np.uint8(_TABLE_ZERO)).view(np.int8),
            scales=_scales(name, arrays, _TABLE_ZERO, num_blocks=1)[:, 0],
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
    name: str, arrays: Mapping[str, NDArray[np.generic]], zero: int, *, num_blocks: int
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
