"""This file holds the model directory: ``config.json``, ``model.safetensors``, ``generation_config.json``.

A leaf's key is its dotted path: NAME for a dense leaf; NAME.codes (packed bytes of a ternary matrix, int8 of a table)
and NAME.scales (float16) for the others. A model that is too large for one file has
``model-00001-of-0000N.safetensors`` and an index. The tokenizer's files lie beside them.

Nothing that a file says is believed before it is checked: sizes before memory is reserved, numbers before use.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.blocks.plain import Plain, plain
from nanochat.config import ModelConfig, config_from_dict, config_to_dict
from nanochat.errors import (
    ConfigError,
    FormatError,
    InputError,
    ModelNotFoundError,
    NumericError,
    ShapeError,
    VersionError,
)
from nanochat.files import exists, parse_json, read_bytes
from nanochat.shapes import shapes
from nanochat.tensors import (
    MAX_SHARD_BYTES,
    Tensor,
    file_type,
    load_tensors,
    release,
    save_tensors,
)
from nanochat.weights import (
    DENSE_DTYPES,
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

__all__ = [
    "FORMAT",
    "GENERATION",
    "MODEL_TYPE",
    "load",
    "load_config",
    "load_generation",
    "load_weights",
    "parse_config",
    "require_complete",
    "require_legal",
    "save",
]

MODEL_TYPE = "nanochat-ternary"
FORMAT = 1

_CONFIG, GENERATION = "config.json", "generation_config.json"
_MAX_CONFIG_BYTES = 2**20


def save(
    directory: str | Path,
    config: ModelConfig,
    weights: Weights[Stored],
    *,
    generation: Mapping[str, object] | None = None,
    others: Mapping[str, bytes] | None = None,
    finish: Callable[[Path], None] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model; it replaces the one in `directory`, of which other files stay.

    Parameters
    ----------
    weights : Weights[Stored]
        Without latent leaves: see `nanochat.init.freeze`.
    generation : mapping, optional
        Content of ``generation_config.json``; absent leaves that file as it is.
    others : mapping, optional
        Content of files that belong to the model, such as the tokenizer's, by name: all are written, or none.
    finish, max_shard_bytes
        See `nanochat.tensors.save_tensors`.

    Raises
    ------
    InputError
        If a leaf is latent, or `generation` has no JSON form.
    ShapeError
        If a leaf is not what `config` asks for.
    NumericError
        If a value is not finite or a code is illegal.
    SaveError
        If a file cannot be written; the model that was there is untouched.
    """
    texts = {_CONFIG: {"model_type": MODEL_TYPE, "format": FORMAT, **config_to_dict(config)}}
    if generation is not None:
        texts[GENERATION] = dict(generation)
    save_tensors(
        Path(directory),
        dict(_tensors(config, weights)),
        texts=texts,
        others=others or {},
        finish=finish,
        max_shard_bytes=max_shard_bytes,
    )


def load(directory: str | Path) -> tuple[ModelConfig, Weights[Stored]]:
    """Read the configuration and the weights of a model; see `load_weights`.

    Raises
    ------
    ModelNotFoundError
        If there is no model directory.
    FormatError, ConfigError
        If ``config.json`` is of another kind or too new (`VersionError`), or holds values that cannot work.
    """
    config = load_config(directory)
    return config, load_weights(directory, config)


def load_weights(directory: str | Path, config: ModelConfig) -> Weights[Stored]:
    """Read the weights of a model; its arrays are read-only views of the files, which must stay.

    Dense leaves are converted to the type that they have in the model. Every byte is checked once.

    Raises
    ------
    FormatError
        If a file is truncated or corrupt, or tensors are missing or unexpected. Each tensor is compared with its
        CRC-32.
    ShapeError
        If a tensor does not have the shape that the configuration asks for.
    NumericError
        If a value is not finite or a code is illegal.
    """
    directory = Path(directory)
    tensors = load_tensors(directory)
    specs = shapes(config)
    _check_keys(specs, tensors, directory)
    return map_leaves(lambda name, spec: _read_leaf(name, spec, tensors), specs)


def load_config(directory: str | Path) -> ModelConfig:
    """Read the configuration of a model, without its weights; see `load`."""
    path = Path(directory) / _CONFIG
    if not exists(path):
        raise ModelNotFoundError(
            f"{path}: no such file; pass a model directory, which holds {_CONFIG}, or a model's name"
        )
    return parse_config(parse_json(read_bytes(path, limit=_MAX_CONFIG_BYTES), str(path)), path)


def parse_config(fields: Mapping[str, object], path: Path) -> ModelConfig:
    """The configuration that a ``config.json`` holds, which stands at `path`."""
    fields = dict(fields)
    model_type = fields.pop("model_type", None)
    if model_type != MODEL_TYPE:
        raise FormatError(
            f'{path}: model_type is {model_type!r:.80}, must be "{MODEL_TYPE}"; '
            "pass a model directory that this package wrote"
        )
    version = fields.pop("format", None)
    if type(version) is not int or version < 1:
        raise FormatError(f"{path}: format is {version!r:.80}, must be 1 or more; fetch it again")
    if version > FORMAT:
        raise VersionError(
            f"{path}: format {version} is newer than {FORMAT}, the newest that this version reads; "
            "upgrade nanochat-ternary"
        )
    try:
        return config_from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_generation(directory: str | Path) -> dict[str, object]:
    """Read ``generation_config.json``; empty if there is none."""
    path = Path(directory) / GENERATION
    if not exists(path):
        return {}
    return parse_json(read_bytes(path, limit=_MAX_CONFIG_BYTES), str(path))


def require_complete(config: ModelConfig, weights: Weights[Stored]) -> None:
    """Refuse weights that cannot be written as a model of this configuration; see `save`."""
    for _ in _tensors(config, weights):
        pass


def require_legal(name: str, leaf: Stored) -> None:
    """Refuse a leaf with values that no arithmetic may meet."""
    leaf = plain(leaf)
    match leaf:
        case Ternary():
            ternary.require_legal(leaf.packed, f"{name}.codes")
            ternary.require_finite(leaf.scales, f"{name}.scales")
        case Int8():
            if leaf.codes.min() < -127:
                raise NumericError(
                    f"{name}.codes holds -128: codes lie in [-127, 127]; fetch the model again"
                )
            ternary.require_finite(leaf.scales, f"{name}.scales")
        case Dense() | Latent():
            ternary.require_finite(leaf.values, name)


def _tensors(
    config: ModelConfig, weights: Weights[Stored]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield the key and the array of everything to be written, checked against the configuration."""
    specs = dict(named_leaves(shapes(config)))
    leaves = dict(named_leaves(weights))
    advice = "save weights with the configuration that they were made for"
    different = sorted(specs.keys() ^ leaves.keys())
    if different:
        name = different[0]
        raise ShapeError(
            f"{name} is {'missing from' if name in specs else 'no part of'} the model: {advice}"
        )
    for name, stored in leaves.items():
        leaf = plain(stored)
        arrays = _arrays(name, leaf)
        found = {key: (file_type(array.dtype), array.shape) for key, array in arrays.items()}
        asked = {key: (dtypes[0], shape) for key, dtypes, shape in _parts(name, specs[name])}
        if found != asked:
            raise ShapeError(
                f"{name} holds {found} but the configuration asks for {asked}: {advice}"
            )
        block = specs[name].activation_block
        if not isinstance(leaf, Dense) and leaf.activation_block != block:
            raise ShapeError(
                f"{name} rounds its input in blocks of {leaf.activation_block} columns but the "
                f"configuration asks for {block}: {advice}"
            )
        require_legal(name, leaf)
        yield from arrays.items()


def _arrays(name: str, leaf: Plain) -> dict[str, NDArray[np.generic]]:
    match leaf:
        case Ternary():
            return {f"{name}.codes": leaf.packed, f"{name}.scales": leaf.scales}
        case Int8():
            scales = leaf.scales if leaf.scales.shape[1] > 1 else leaf.scales[:, 0]
            return {f"{name}.codes": leaf.codes, f"{name}.scales": scales}
        case Dense():
            return {name: leaf.values}
        case Latent():
            raise InputError(
                f"{name} is latent: a model directory holds rounded weights; pass freeze(weights), "
                "from nanochat.init"
            )


def _parts(name: str, spec: Spec) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """Yield key, accepted types (the written one first) and shape of the tensors of one leaf."""
    if spec.kind == "dense":
        written = file_type(DENSE_DTYPES[spec.dtype])
        others = {file_type(dtype) for dtype in DENSE_DTYPES.values()} - {written}
        yield name, (written, *sorted(others)), spec.shape
        return
    rows, columns = spec.shape
    if spec.kind == "int8":
        blocks = columns // spec.weight_block
        yield f"{name}.codes", ("I8",), spec.shape
        # Most tables have one for each row.
        scales = file_type(DENSE_DTYPES[spec.dtype])
        yield f"{name}.scales", (scales,), (rows, blocks) if blocks > 1 else (rows,)
    else:
        yield f"{name}.codes", ("U8",), (rows, -(-columns // 4))
        yield f"{name}.scales", ("F16",), (rows, columns // spec.weight_block)


def _check_keys(specs: Weights[Spec], tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Refuse missing, unexpected and misshapen tensors."""
    parts = [part for name, spec in named_leaves(specs) for part in _parts(name, spec)]
    missing = [key for key, _, _ in parts if key not in tensors]
    if missing:
        raise FormatError(
            f"{directory}: {len(missing)} tensors are missing, the first is {missing[0]}: "
            f"{_CONFIG} is another model's, or a download is incomplete; fetch the model again"
        )
    unexpected = sorted(tensors.keys() - {key for key, _, _ in parts})
    if unexpected:
        raise FormatError(
            f"{directory}: {len(unexpected)} tensors are no part of the model, the first is "
            f"{unexpected[0]!r:.80}: {_CONFIG} is another model's; fetch the model again"
        )
    for key, dtypes, shape in parts:
        tensor = tensors[key]
        if tensor.shape != shape:
            raise ShapeError(
                f"{tensor.path}: {key} has shape {list(tensor.shape)} but {_CONFIG} asks for {list(shape)}: "
                "one of the two files is another model's; fetch both again"
            )
        if tensor.dtype not in dtypes:
            raise FormatError(
                f"{tensor.path}: {key} is of type {tensor.dtype}, must be {' or '.join(dtypes)}; "
                "convert it, or fetch the model again"
            )


def _read_leaf(name: str, spec: Spec, tensors: Mapping[str, Tensor]) -> Stored:
    """Check every byte of a leaf, in the cache, and leave none of them in memory."""
    parts = [tensors[key] for key, _, _ in _parts(name, spec)]
    for part in parts:
        part.verify()
    leaf = _decode(name, spec, tensors)
    require_legal(name, leaf)
    for part in parts:
        release(part.data)
    return leaf


def _decode(name: str, spec: Spec, tensors: Mapping[str, Tensor]) -> Stored:
    if spec.kind == "dense":
        # A number beyond float16 becomes infinite, which is refused with all others.
        with np.errstate(over="ignore"):
            return Dense(values=tensors[name].array().astype(DENSE_DTYPES[spec.dtype], copy=False))
    codes, scales = tensors[f"{name}.codes"].array(), tensors[f"{name}.scales"].array()
    if spec.kind == "int8":
        return Int8(
            codes=codes.astype(np.int8, copy=False),
            scales=scales.astype(DENSE_DTYPES[spec.dtype], copy=False).reshape(len(codes), -1),
            activation_block=spec.activation_block,
        )
    return Ternary(
        packed=codes.astype(np.uint8, copy=False),
        scales=scales.astype(np.float16, copy=False),
        columns=spec.shape[1],
        activation_block=spec.activation_block,
    )
