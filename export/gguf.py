"""This file holds the GGUF export of any model, exact to the last bit, and its reader.

The architecture is ``nanochat``: the tensors have the names of the model directory, the configuration stands under
``nanochat.config``, and keys that other tools look for stand where they look. Stock llama.cpp does not know this
architecture; it shows such a file's metadata and refuses to run it.
"""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.checkpoint import require_complete, require_legal
from nanochat.config import ModelConfig, config_from_dict, config_to_dict
from nanochat.errors import ConfigError, FormatError, SaveError, ShapeError, VersionError
from nanochat.export.gguf_file import GgufFile, GgufTensor, Value, read_gguf
from nanochat.export.gguf_types import (
    F16,
    F32,
    Q8_0,
    TQ2_0,
    TensorType,
    pack_q8_0,
    pack_ternary,
    unpack_q8_0,
    unpack_ternary,
)
from nanochat.files import atomic_file, exists, parse_json, read_bytes
from nanochat.shapes import shapes
from nanochat.tokenizer import PRE_TOKENIZER, Tokenizer
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

__all__ = ["ARCHITECTURE", "FORMAT", "load_gguf", "write_gguf"]

ARCHITECTURE = "nanochat"
FORMAT = 1

_CONFIG = f"{ARCHITECTURE}.config."
_FORMAT = f"{ARCHITECTURE}.format"
_KINDS = {"ternary": TQ2_0, "int8": Q8_0}
_FLOATS = {"float32": F32, "float16": F16}
_MAX_TOKENIZER_CONFIG_BYTES = 2**20
# The pieces hold no space, so these names are free.
_UNUSED = "<|unused {}|>"


def write_gguf(
    path: str | Path,
    config: ModelConfig,
    weights: Weights[Stored],
    *,
    tokenizer: str | Path,
    name: str,
    licence: str = "MIT",
) -> None:
    """Write a model to one file, read it back, and put it in place if it is the same model.

    Ternary matrices become TQ2_0 and 8-bit tables Q8_0, which hold the same codes and scales; the rest is F32 or F16,
    as in the model.

    Parameters
    ----------
    path : str or Path
        The file to write or replace.
    config, weights
        The model, without latent leaves.
    tokenizer : str or Path
        Directory with ``tokenizer.json`` and perhaps ``tokenizer_config.json``, for the chat template.
    name : str
        Name of the model that other tools show.
    licence : str
        SPDX identifier of the weights' licence.

    Raises
    ------
    ConfigError
        If TQ2_0 or Q8_0 cannot hold the model exactly.
    FormatError
        If the tokenizer is damaged, or has more tokens than the model.
    InputError, ShapeError, NumericError
        As for `nanochat.checkpoint.save`.
    SaveError
        If the file cannot be written; one that stood there is untouched.
    """
    require_complete(config, weights)
    _require_blocks(config)
    vocabulary = Tokenizer.load(tokenizer)
    template = _chat_template(Path(tokenizer))
    if vocabulary.vocab_size > config.vocab_size:
        raise FormatError(
            f"{tokenizer}: {vocabulary.vocab_size} tokens, more than the {config.vocab_size} of the model: "
            "pass the model's own tokenizer"
        )
    with atomic_file(Path(path)) as new:
        writer = gguf.GGUFWriter(new, ARCHITECTURE)
        try:
            _add_general(writer, name, licence)
            _add_config(writer, config)
            _add_tokenizer(writer, vocabulary, template, config.vocab_size)
            _write(writer, weights)
        finally:
            writer.close()
        _require_same(weights, load_gguf(new)[1], Path(path))


def load_gguf(path: str | Path) -> tuple[ModelConfig, Weights[Stored], Tokenizer]:
    """Read what `write_gguf` has written: equal codes and scales, dense leaves as views of the file.

    Raises
    ------
    FormatError
        If the file is missing, truncated, corrupt, too new (`VersionError`), or another architecture's.
    ConfigError
        If the configuration in it cannot work.
    ShapeError
        If a tensor does not have the shape that the configuration asks for.
    NumericError
        If a value is not finite or a code is illegal.
    """
    path = Path(path)
    file = read_gguf(path)
    config = _read_config(path, file.metadata)
    specs = shapes(config)
    _check_names(path, specs, file)
    weights = map_leaves(lambda name, spec: _decode(path, name, spec, file.tensors[name]), specs)
    for name, leaf in named_leaves(weights):
        require_legal(name, leaf)
    return config, weights, _read_tokenizer(path, file.metadata, config.vocab_size)


def _require_blocks(config: ModelConfig) -> None:
    for name, spec in named_leaves(shapes(config)):
        columns = spec.shape[-1]
        if spec.kind == "ternary" and columns % TQ2_0.columns:
            raise ConfigError(
                f"{name} has {columns} columns: TQ2_0 packs {TQ2_0.columns} at a time; export ONNX, or train with "
                f"widths that are multiples of {TQ2_0.columns}"
            )
        if spec.kind == "ternary" and spec.weight_block % TQ2_0.columns:
            raise ConfigError(
                f"{name} has a scale for every {spec.weight_block} columns: TQ2_0 has one for every {TQ2_0.columns}, "
                "and to merge two is to change the model; export ONNX, or train with weight_block=256"
            )
        if spec.kind == "int8" and columns % Q8_0.columns:
            raise ConfigError(
                f"{name} has {columns} columns: Q8_0 packs {Q8_0.columns} at a time; export ONNX, or train with a "
                f"width that is a multiple of {Q8_0.columns}"
            )


def _chat_template(directory: Path) -> str:
    path = directory / "tokenizer_config.json"
    if not exists(path):
        return ""
    template = parse_json(read_bytes(path, limit=_MAX_TOKENIZER_CONFIG_BYTES), str(path)).get(
        "chat_template", ""
    )
    if not isinstance(template, str):
        raise FormatError(f"{path}: chat_template must be a text; write one template")
    return template


def _add_general(writer: gguf.GGUFWriter, name: str, licence: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    writer.add_license(licence)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_TQ2_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_config(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    writer.add_uint32(_FORMAT, FORMAT)
    for field, value in config_to_dict(config).items():
        match value:
            case bool():
                writer.add_bool(_CONFIG + field, value)
            case int():
                writer.add_int64(_CONFIG + field, value)
            case float():
                # float32 would not give 1e-6 back.
                writer.add_float64(_CONFIG + field, value)
            case str():
                writer.add_string(_CONFIG + field, value)
            case [*items]:
                writer.add_array(_CONFIG + field, items)
            case _:
                raise AssertionError(field)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.expert_width if config.num_experts else config.ffn_width)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.num_experts:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.experts_per_token)
        writer.add_expert_feed_forward_length(config.expert_width)


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: Tokenizer, template: str, vocab_size: int
) -> None:
    kinds = [gguf.TokenType.NORMAL] * tokenizer.vocab_size
    for token in tokenizer.special_ids:
        kinds[token] = gguf.TokenType.CONTROL
    # Readers take the number of tokens for the number of rows of the embedding.
    unused = range(tokenizer.vocab_size, vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list([*tokenizer.pieces, *(_UNUSED.format(token) for token in unused)])
    writer.add_token_types([*kinds, *(gguf.TokenType.UNUSED for _ in unused)])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer.merges])
    writer.add_bos_token_id(tokenizer.bos)
    writer.add_eos_token_id(tokenizer.eos)
    writer.add_eot_token_id(tokenizer.end)
    writer.add_pad_token_id(tokenizer.pad)
    writer.add_add_bos_token(True)
    writer.add_chat_template(template)


def _write(writer: gguf.GGUFWriter, weights: Weights[Stored]) -> None:
    """Write the file, packing one tensor at a time."""
    leaves = dict(named_leaves(weights))
    for name, leaf in leaves.items():
        shape, dtype, kind = _packed_shape(leaf)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        writer.add_tensor_info(
            name, shape, dtype, size, raw_dtype=gguf.GGMLQuantizationType(kind.number)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for leaf in leaves.values():
        writer.write_tensor_data(_pack(leaf))


def _packed_shape(
    leaf: Stored,
) -> tuple[tuple[int, ...], np.dtype[np.generic], TensorType]:
    """Return shape and type of the array that `_pack` returns, and the name of its format."""
    match leaf:
        case Ternary():
            kind, columns, rows = _KINDS["ternary"], leaf.columns, len(leaf.packed)
        case Int8():
            kind, columns, rows = _KINDS["int8"], leaf.codes.shape[1], len(leaf.codes)
        case Dense():
            return leaf.values.shape, leaf.values.dtype, _FLOATS[leaf.values.dtype.name]
        case Latent():
            raise AssertionError
    return (rows, kind.num_bytes((columns,))), np.dtype(np.uint8), kind


def _pack(leaf: Stored) -> NDArray[np.generic]:
    match leaf:
        case Ternary():
            return pack_ternary(
                TQ2_0, ternary.unpack(leaf.packed, columns=leaf.columns), leaf.scales
            )
        case Int8():
            return pack_q8_0(leaf.codes, leaf.scales)
        case Dense():
            return np.ascontiguousarray(leaf.values)
        case Latent():
            raise AssertionError


def _require_same(weights: Weights[Stored], read: Weights[Stored], path: Path) -> None:
    others = dict(named_leaves(read))
    for name, leaf in named_leaves(weights):
        pairs = zip(vars(leaf).values(), vars(others[name]).values(), strict=True)
        if not all(np.array_equal(a, b) for a, b in pairs):
            raise SaveError(
                f"{path}: {name} is not read back as it was written; test the disk, and write it again"
            )


def _read_config(path: Path, metadata: Mapping[str, Value]) -> ModelConfig:
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise FormatError(
            f"{path}: architecture is {architecture!r:.80}, must be {ARCHITECTURE!r}: "
            "pass a file that nanochat-ternary wrote"
        )
    version = metadata.get(_FORMAT)
    if type(version) is not int or version < 1:
        raise FormatError(
            f"{path}: {_FORMAT} is {version!r:.80}, must be 1 or more: "
            "pass a file that nanochat-ternary wrote"
        )
    if version > FORMAT:
        raise VersionError(
            f"{path}: {_FORMAT} {version} is newer than {FORMAT}, the newest that this version reads; "
            "upgrade nanochat-ternary"
        )
    fields = {
        key.removeprefix(_CONFIG): value
        for key, value in metadata.items()
        if key.startswith(_CONFIG)
    }
    arrays = [name for name, value in fields.items() if isinstance(value, np.ndarray)]
    if arrays:
        raise FormatError(
            f"{path}: the field {arrays[0]!r:.80} is an array of numbers, which no field is; fetch the file again"
        )
    try:
        return config_from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _check_names(path: Path, specs: Weights[Spec], file: GgufFile) -> None:
    names = {name for name, _ in named_leaves(specs)}
    different = sorted(names ^ file.tensors.keys())
    if different:
        name = different[0]
        raise FormatError(
            f"{path}: {len(different)} tensors are missing or no part of the model, the first "
            f"{'is missing' if name in names else 'is no part'}: {name!r:.80}; fetch the file again"
        )


def _decode(path: Path, name: str, spec: Spec, tensor: GgufTensor) -> Stored:
    if tensor.shape != spec.shape:
        raise ShapeError(
            f"{path}: {name} has shape {list(tensor.shape)} but the configuration asks for {list(spec.shape)}: "
            "fetch the file again"
        )
    kind = _FLOATS[spec.dtype] if spec.kind == "dense" else _KINDS[spec.kind]
    if tensor.kind != kind:
        raise FormatError(
            f"{path}: {name} is {tensor.kind.name}, must be {kind.name}: "
            "export the model again with nanochat-ternary"
        )
    if spec.kind == "dense":
        return Dense(
            values=tensor.data.view(np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.shape)
        )
    rows, columns = spec.shape
    data = tensor.data.reshape(rows, -1)
    if spec.kind == "int8":
        codes, scales = unpack_q8_0(data, name=name)
        return Int8(codes=codes, scales=scales, activation_block=spec.activation_block)
    codes, scales = unpack_ternary(TQ2_0, data, num_scales=columns // spec.weight_block, name=name)
    return Ternary(
        packed=ternary.pack(codes),
        scales=scales,
        columns=columns,
        activation_block=spec.activation_block,
    )


def _read_tokenizer(path: Path, metadata: Mapping[str, Value], vocab_size: int) -> Tokenizer:
    keys = gguf.Keys.Tokenizer
    for key, required in ((keys.MODEL, "gpt2"), (keys.PRE, PRE_TOKENIZER)):
        if metadata.get(key) != required:
            raise FormatError(
                f"{path}: {key} is {metadata.get(key)!r:.80}, must be {required!r}: "
                "export the model again with nanochat-ternary"
            )
    pieces, merges = metadata.get(keys.LIST), metadata.get(keys.MERGES, [])
    if not isinstance(pieces, list) or not isinstance(merges, list) or len(pieces) != vocab_size:
        raise FormatError(
            f"{path}: no lists of {vocab_size} tokens and of merges; fetch the file again"
        )
    while pieces and pieces[-1] == _UNUSED.format(len(pieces) - 1):
        pieces.pop()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if len(set(pieces)) < len(pieces) or any(len(pair) != 2 for pair in pairs):
        raise FormatError(
            f"{path}: tokens that repeat, or merges that are no pairs; fetch the file again"
        )
    try:
        return Tokenizer(pieces, [(pair[0], pair[1]) for pair in pairs])
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
