"""This file holds the metadata of a model's GGUF file: written for llama.cpp and this package, read for the latter.

Keys that llama.cpp looks for stand where it looks, under the architecture's name. Those under ``nanochat`` hold the
whole configuration and the golden record, in a file of a stock architecture, too, so that it can be read back exactly.

References
----------
.. [1] github.com/ggml-org/ggml, docs/gguf.md, version 3; llama.cpp, src/llama-model.cpp, commit 0c1e570.
"""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig, config_from_dict, config_to_dict
from nanochat.errors import ConfigError, FormatError, VersionError
from nanochat.export.gguf.container import Field, GgufFile, MetadataValue
from nanochat.export.gguf.sampling import new_sampling
from nanochat.export.gguf.tensors import OUTTYPES, OutType, tensor_members
from nanochat.export.gguf.tokenizer import new_tokenizer
from nanochat.rotary import ntk_theta
from nanochat.shapes import delta_key_heads, layer_kinds
from nanochat.weights import Dense, Ternary, named_leaves

__all__ = [
    "FORMAT",
    "GOLDEN",
    "LOG_RATES",
    "QWEN35",
    "hyperparameters",
    "is_ours",
    "new_metadata",
    "read_config",
    "read_licence",
    "require_as_recomputed",
]

FORMAT = 1
GOLDEN = "nanochat.golden"

_FORMAT = "nanochat.format"
_CONFIG = "nanochat.config."
_KEYS = gguf.Keys
# The number of Q2_0 is newer than version 0.19 of the gguf library.
_FILE_TYPES: Mapping[OutType, int] = {
    "tq2_0": gguf.LlamaFileType.MOSTLY_TQ2_0,
    "tq1_0": gguf.LlamaFileType.MOSTLY_TQ1_0,
    "q2_0": 41,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
}
# What may be called otherwise; and the record, with which everything else has been compared.
# The architecture with Gated DeltaNet, and the key of what its tensors do not hold.
QWEN35 = "qwen35"
LOG_RATES = "nanochat.log_rates"
_FREE = frozenset({_KEYS.General.NAME, _KEYS.General.LICENSE, GOLDEN})


def new_metadata(bundle: Bundle, architecture: str, *, outtype: OutType) -> dict[str, Field]:
    """Everything of a file but its tensors."""
    general, fields = _KEYS.General, config_to_dict(bundle.config)
    return {
        general.ARCHITECTURE: architecture,
        general.TYPE: "model",
        general.NAME: bundle.name,
        general.LICENSE: bundle.licence,
        general.FILE_TYPE: np.uint32(_FILE_TYPES[outtype]),
        general.QUANTIZATION_VERSION: np.uint32(gguf.GGML_QUANT_VERSION),
        **new_sampling(bundle.generation),
        **hyperparameters(bundle.config, architecture),
        **new_tokenizer(bundle.tokenizer, bundle.config.vocab_size),
        _FORMAT: np.uint32(FORMAT),
        # What is empty has no type.
        **{_CONFIG + name: _field(value) for name, value in fields.items() if value != []},
        **({} if bundle.golden is None else {GOLDEN: bundle.golden.to_json()}),
        **({LOG_RATES: _log_rates(bundle)} if architecture == QWEN35 else {}),
    }


def _log_rates(bundle: Bundle) -> NDArray[np.float32]:
    """The logarithms of all rates of decay: the architecture has the rates, which do not give them back to the bit."""
    rates = [
        leaf.values
        for name, leaf in named_leaves(bundle.weights)
        if name.endswith(".log_rate") and isinstance(leaf, Dense)
    ]
    return np.concatenate(rates)


def is_ours(metadata: Mapping[str, MetadataValue]) -> bool:
    """Whether this package has written the file, whatever its architecture."""
    return _FORMAT in metadata


def read_config(path: Path, metadata: Mapping[str, MetadataValue]) -> ModelConfig:
    """The configuration of a model in a file that `is_ours`."""
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
        key.removeprefix(_CONFIG): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in metadata.items()
        if key.startswith(_CONFIG)
    }
    try:
        return config_from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def read_licence(metadata: Mapping[str, MetadataValue]) -> str:
    """The SPDX identifier that a file gives as the licence of its weights, or "unknown"."""
    licence = metadata.get(_KEYS.General.LICENSE)
    return licence if isinstance(licence, str) and licence else "unknown"


def require_as_recomputed(path: Path, file: GgufFile, bundle: Bundle) -> None:
    """Refuse a file that `is_ours` if a key of it is not what its model asks for, or no key of such a file.

    llama.cpp and other tools read keys that this package does not, such as the base of the rotation.
    """
    metadata = file.metadata
    if not is_ours(metadata):
        return
    architecture = str(metadata[_KEYS.General.ARCHITECTURE])
    wanted = new_metadata(bundle, architecture, outtype=_outtype(file, bundle))
    for key in sorted(metadata.keys() | wanted.keys()):
        found, expected = metadata.get(key), wanted.get(key)
        # The fields made the model; one that a later version added is in no file of an earlier one.
        if key.startswith(_CONFIG) or key in _FREE:
            continue
        if not _is_same(found, expected):
            raise FormatError(
                f"{path}: the key {key!r:.80} is {found!r:.80}, and the model of this file asks for {expected!r:.80}: "
                "the file was changed; fetch it again, or export the model again"
            )


def _outtype(file: GgufFile, bundle: Bundle) -> OutType:
    """The type of the first ternary matrix."""
    architecture = str(file.metadata[_KEYS.General.ARCHITECTURE])
    first = next(name for name, leaf in named_leaves(bundle.weights) if isinstance(leaf, Ternary))
    members = tensor_members(bundle.config, architecture)
    tensor = next(tensor for tensor, names in members.items() if first in names)
    return next(name for name, kind in OUTTYPES.items() if kind == file.tensors[tensor].kind)


def _is_same(found: MetadataValue | None, expected: Field | None) -> bool:
    if isinstance(expected, np.generic):
        return type(found) is type(expected.item()) and found == expected.item()
    if isinstance(expected, np.ndarray):
        return isinstance(found, np.ndarray) and np.array_equal(found, expected)
    return type(found) is type(expected) and found == expected


def hyperparameters(config: ModelConfig, architecture: str) -> dict[str, Field]:
    """What llama.cpp wants to know of a model's shape and arithmetic; of rotations, those of one base."""
    llm, attention, rope = _KEYS.LLM, _KEYS.Attention, _KEYS.Rope
    counts = {
        llm.VOCAB_SIZE: config.vocab_size,
        llm.CONTEXT_LENGTH: config.context_length,
        llm.EMBEDDING_LENGTH: config.width,
        llm.BLOCK_COUNT: config.num_layers,
        llm.FEED_FORWARD_LENGTH: config.expert_width if config.num_experts else config.ffn_width,
        attention.HEAD_COUNT: config.num_heads,
        attention.HEAD_COUNT_KV: config.num_kv_heads,
        attention.KEY_LENGTH: config.head_dim,
        attention.VALUE_LENGTH: config.head_dim,
        rope.DIMENSION_COUNT: config.rope_dims or config.head_dim,
    }
    if config.num_experts:
        counts |= {
            llm.EXPERT_COUNT: config.num_experts,
            llm.EXPERT_USED_COUNT: config.experts_per_token,
            llm.EXPERT_FEED_FORWARD_LENGTH: config.expert_width,
        }
    numbers = {
        attention.LAYERNORM_RMS_EPS: config.norm_eps,
        # The base after NTK-aware scaling, for which llama.cpp has no option.
        rope.FREQ_BASE: ntk_theta(config),
    }
    if architecture == QWEN35:
        ssm = _KEYS.SSM
        counts |= {
            llm.FULL_ATTENTION_INTERVAL: layer_kinds(config).index("attention") + 1,
            ssm.CONV_KERNEL: config.delta_conv_width,
            ssm.STATE_SIZE: config.delta_key_dim,
            ssm.GROUP_COUNT: delta_key_heads(config),
            ssm.TIME_STEP_RANK: config.delta_heads,
            ssm.INNER_SIZE: config.delta_heads * config.delta_value_dim,
        }
    fields: dict[str, Field] = {key: np.uint32(value) for key, value in counts.items()}
    fields |= {key: np.float32(value) for key, value in numbers.items()}
    if architecture == QWEN35:
        # Pairs that turn by three positions of a token, which are one in texts.
        pairs = (config.rope_dims or config.head_dim) // 2
        third = -(-pairs // 3)
        sections = [third, third, pairs - 2 * third, 0]
        fields[rope.DIMENSION_SECTIONS] = np.array(sections, np.int32)
    return {key.format(arch=architecture): value for key, value in fields.items()}


def _field(value: object) -> Field:
    match value:
        case bool():
            return np.bool_(value)
        case int():
            return np.int64(value)
        case float():
            # float32 would not give 1e-6 back.
            return np.float64(value)
        case str():
            return value
        case [float(), *_]:
            return np.array(value, np.float64)
        case [*items]:
            return list(map(str, items))
    raise AssertionError(value)
