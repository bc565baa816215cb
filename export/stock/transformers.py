"""This file holds the export for transformers, and its reader; neither needs torch.

For the Hub, this package's own model directory is the best there is: small, and without loss. Stock transformers runs
the same model with dense weights, at eight times the bytes. Ternary matrices are float16, which holds every scale;
tables are float32, because an 8-bit code times a float16 scale has 18 bits.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.bundle import Bundle
from nanochat.checkpoint import require_complete
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
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

__all__ = ["load_transformers", "write_transformers"]

_TYPES = {"ternary": "F16", "int8": "F32", "dense": "F32"}


def write_transformers(folder: Path, bundle: Bundle, *, progress: Progress | None = None) -> str:
    """Write a model for stock transformers, and return its name of the architecture, such as "qwen3".

    Parameters
    ----------
    folder : Path
        Made if it is not there; a model that it holds is replaced.
    progress : callable, optional
        Called with the tensors made dense and the tensors to make dense.
    """
    texts = stock_texts(bundle, "transformers")
    require_complete(bundle.config, bundle.weights)
    leaves = exported_leaves(bundle)
    tensors: dict[str, NDArray[np.generic]] = {}
    for done, (name, leaf) in enumerate(leaves.items(), 1):
        tensors[_key(name)] = _dense(name, leaf)
        if progress is not None:
            progress(done, len(leaves))
    save_tensors(
        folder, tensors, texts=texts, others=other_files(bundle), metadata={"format": "pt"}
    )
    return str(texts["config.json"]["model_type"])


def load_transformers(folder: Path, config: ModelConfig) -> tuple[ModelConfig, Weights[Stored]]:
    """Read what `write_transformers` has written for transformers: equal codes and scales.

    Parameters
    ----------
    config : ModelConfig
        What the model was exported from: transformers' own configuration does not say all of it.

    Returns
    -------
    config : ModelConfig
        The same without the heads that are for training only.
    weights : Weights[Stored]
        Dense leaves are views of the files. A block of zeros has the smallest scale.
    """
    config = read_config(config)
    stock_architecture(config, "transformers")
    specs = shapes(config)
    tensors = StockTensors(folder)
    arrays = {
        name: tensors.take(_key(name), dtype=_TYPES[spec.kind], shape=spec.shape)
        for name, spec in named_leaves(specs)
    }
    tensors.require_none_left()
    return config, map_leaves(lambda name, spec: _recover(name, spec, arrays[name]), specs)


def _key(name: str) -> str:
    return f"{module_name(name)}.weight"


def _dense(name: str, leaf: Stored) -> NDArray[np.generic]:
    match leaf:
        case Ternary():
            codes = ternary.unpack(leaf.packed, columns=leaf.columns, name=name)
            return ternary.dequantize(codes, leaf.scales).astype(np.float16)
        case Int8():
            values = ternary.dequantize(leaf.codes, leaf.scales[:, None])
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
            "for nanochat, or round the table with quantize_rows"
        )


def _recover(name: str, spec: Spec, array: NDArray[np.generic]) -> Stored:
    values = array.astype(np.float32, copy=False)
    if spec.kind == "dense":
        ternary.require_finite(values, name)
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
