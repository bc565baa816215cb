"""This file holds the model's configuration, its checks, and its form as a dictionary; presets are in `presets`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from nanochat.errors import ConfigError, did_you_mean

__all__ = [
    "TABLE_BLOCKS",
    "Activation",
    "AheadKind",
    "Coefficients",
    "DeltaGates",
    "LayerKind",
    "Mixer",
    "ModelConfig",
    "RopeType",
    "TableFormat",
    "check_field",
    "config_from_dict",
    "config_to_dict",
    "hybrid_pattern",
]

Activation = Literal["swiglu", "relu2", "relu2_glu"]
AheadKind = Literal["independent", "sequential"]
Coefficients = Literal["static", "dynamic"]
LayerKind = Literal["attention", "delta"]
Mixer = Literal["lite", "sinkhorn", "identity"]
DeltaGates = Literal["dense", "float16", "bfloat16", "ternary"]
RopeType = Literal["ntk", "linear", "llama3", "yarn", "factors"]
TableFormat = Literal["int8", "int8_32", "int8_16", "ternary", "dense", "float16", "bfloat16"]

# Columns that share a scale in tables of codes that have several in a row.
TABLE_BLOCKS: Mapping[str, int] = {"int8_32": 32, "int8_16": 16}

# Largest accepted values. They bound what a hostile `config.json` can make a reader allocate.
_LIMITS = {
    "vocab_size": 1 << 21,
    "width": 1 << 16,
    "num_layers": 1 << 10,
    "num_heads": 1 << 10,
    "num_kv_heads": 1 << 10,
    "head_dim": 1 << 10,
    "ffn_width": 1 << 18,
    "context_length": 1 << 24,
    "rope_dims": 1 << 10,
    "rope_original_context": 1 << 24,
    "loop_count": 64,
    "num_ahead": 16,
    "num_experts": 1 << 10,
    "experts_per_token": 1 << 10,
    "expert_width": 1 << 18,
    "shared_expert_width": 1 << 18,
    "delta_heads": 1 << 10,
    "delta_key_heads": 1 << 10,
    "delta_key_dim": 1 << 10,
    "delta_value_dim": 1 << 10,
    "delta_conv_width": 64,
    "sinkhorn_iterations": 1 << 10,
}
# Of those, the ones that may be 0, some of them with or without experts only.
_MAY_BE_ZERO = (
    "ffn_width",
    "num_experts",
    "expert_width",
    "shared_expert_width",
    "num_ahead",
    "rope_dims",
    "rope_original_context",
    "delta_key_heads",
)
_RANGES = {
    "rope_theta": (1.0, 1e12),
    "rope_scale": (1.0, 1e6),
    "rope_low": (1e-3, 1e6),
    "rope_high": (1e-3, 1e6),
    "rope_magnitude": (1e-3, 1e3),
    "norm_eps": (1e-20, 1.0),
    "mixer_bias": (-30.0, 30.0),
    "exit_threshold": (1e-6, 1.0),
    "embedding_scale": (1e-6, 1e6),
    "residual_scale": (1e-6, 1e6),
    "logit_scale": (1e-6, 1e6),
}
_CHOICES: dict[str, tuple[object, ...]] = {
    "activation": get_args(Activation),
    "ahead_kind": get_args(AheadKind),
    "coefficients": get_args(Coefficients),
    "mixer": get_args(Mixer),
    "delta_gates": get_args(DeltaGates),
    "rope_type": get_args(RopeType),
    "rotation_block": (0, *(1 << power for power in range(2, 15))),
    "table_format": get_args(TableFormat),
    "num_streams": (1, 2, 4),
    "head_format": ("table", *get_args(TableFormat)),
    "weight_block": ("row", 64, 128, 256),
    "activation_block": ("token", 64, 128, 256),
}
_FACTORS = (1e-3, 1e6)
# Experts of all layers. The largest published models have about 25,000.
_MOST_EXPERTS = 1 << 15


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that decides what the model computes.

    Parameters
    ----------
    vocab_size, width, num_layers, context_length : int
        Tokens in the vocabulary, features of the residual stream, layers held in memory, and the longest sequence.
    num_heads, num_kv_heads, head_dim : int
        Query heads, key and value heads (grouped-query attention), features of one head.
    ffn_width : int
        Hidden features of a dense feed-forward network; unused when `num_experts` is positive.
    activation : {"swiglu", "relu2", "relu2_glu"}
        ``silu(gate) * up``, ``relu(up)**2``, or ``relu(gate)**2 * up``.
    qk_norm, sub_norm, attention_gate : bool
        RMSNorm of each query and key head; RMSNorm before the output linears (BitNet); sigmoid-gated attention.
    layer_pattern : tuple of {"attention", "delta"}
        Kinds of the layers, repeated until all layers have one. See `hybrid_pattern`.
    rope_theta, rope_dims : float, int
        Base of the rotation, and the features of a head that are rotated, from the first on; 0 is all.
    rope_scale, rope_type : float, {"ntk", "linear", "llama3", "yarn", "factors"}
        Context factor (1 is none), and how it slows the rotation down; see `nanochat.rotary.rotation`.
    rope_original_context : int
        Tokens that the model was first trained for, of which *llama3* and *yarn* count the turns.
    rope_low, rope_high : float
        Turns in them up to which a frequency is divided by the whole factor, and from which on by 1.
    rope_factors : tuple of float
        What *factors* divides each frequency by.
    rope_magnitude : float
        What cosine and sine are multiplied with.
    delta_heads, delta_key_dim, delta_value_dim, delta_conv_width : int
        Heads, key and value features, and taps of the short convolution of Gated DeltaNet layers.
    delta_key_heads : int
        Heads of queries and keys there, each of which serves as many value heads; 0 is `delta_heads`.
    delta_gates : {"dense", "float16", "bfloat16", "ternary"}
        Storage of the linears that say how much is learned and kept there: dense is float32.
    num_experts, experts_per_token, expert_width, shared_expert_width : int
        Mixture of experts; 0 experts is a dense network, a shared width of 0 is no shared expert.
    loop_count, loop_prelude, loop_coda : int
        LoopLM: the layers between the first `loop_prelude` and the last `loop_coda` run `loop_count` times.
    exit_threshold : float
        A token leaves the loop once its cumulative exit probability reaches this; 1 never leaves early.
    num_ahead : int
        Extra heads that predict the tokens after the next one, in training only.
    ahead_kind : {"independent", "sequential"}
        Whether each of them reads what the layers give, or what the one before it gives with the token after.
    tie_embeddings : bool
        Whether the head is the embedding table.
    num_streams, coefficients, mixer, sinkhorn_iterations : int or str
        Residual streams (mHC); 1 is the ordinary residual, for which the other three have no effect.
    mixer_bias : float
        Initial logit of the other permutations (or entries) relative to the identity.
    table_format, head_format : {"int8", "int8_32", "int8_16", "ternary", "dense", "float16", "bfloat16"}
        Storage of the embedding, and of an untied head, for which "table" is that of the embedding: 8-bit codes with a
        scale for each row, or for 32 or 16 of its columns; ternary codes; float32 numbers, or those of 16 bits.
    rotation_block : int
        Every ternary matrix is one of a rotated input: signed Walsh-Hadamard transforms of so many columns; 0 is none.
    embedding_scale, residual_scale, logit_scale : float
        What looked-up embeddings and the results of sub-layers are multiplied with, and what logits are divided by.
    weight_block : int or "row"
        Columns of a ternary matrix that share a scale.
    activation_block : int or "token"
        Columns of a linear's input that share a scale.
    norm_eps : float
        Added to the mean square inside every RMSNorm.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_width: int
    head_dim: int = 64
    context_length: int = 2048
    activation: Activation = "swiglu"
    qk_norm: bool = True
    sub_norm: bool = False
    attention_gate: bool = False
    layer_pattern: tuple[LayerKind, ...] = ("attention",)
    rope_theta: float = 10_000.0
    rope_scale: float = 1.0
    rope_type: RopeType = "ntk"
    rope_dims: int = 0
    rope_original_context: int = 0
    rope_low: float = 1.0
    rope_high: float = 32.0
    rope_factors: tuple[float, ...] = ()
    rope_magnitude: float = 1.0
    delta_heads: int = 4
    delta_key_dim: int = 64
    delta_value_dim: int = 64
    delta_conv_width: int = 4
    delta_key_heads: int = 0
    delta_gates: DeltaGates = "dense"
    num_experts: int = 0
    experts_per_token: int = 2
    expert_width: int = 0
    shared_expert_width: int = 0
    loop_count: int = 1
    loop_prelude: int = 0
    loop_coda: int = 0
    exit_threshold: float = 1.0
    num_ahead: int = 0
    ahead_kind: AheadKind = "independent"
    tie_embeddings: bool = True
    num_streams: int = 4
    coefficients: Coefficients = "static"
    mixer: Mixer = "lite"
    sinkhorn_iterations: int = 20
    mixer_bias: float = -8.0
    table_format: TableFormat = "int8"
    head_format: TableFormat | Literal["table"] = "table"
    rotation_block: int = 0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    weight_block: int | Literal["row"] = 256
    activation_block: int | Literal["token"] = 128
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_field(field.name, getattr(self, field.name))
        _check_zeros(self)
        _check_blocks(self)
        _check_structure(self)
        _check_rotation(self)


_FIELDS = {field.name: field for field in dataclasses.fields(ModelConfig)}


def check_field(name: str, value: object) -> None:
    """Refuse a value that a field has in no configuration."""
    field = _FIELDS[name]
    if name == "layer_pattern":
        kinds = get_args(LayerKind)
        if not isinstance(value, tuple) or not value or any(k not in kinds for k in value):
            raise ConfigError(f"layer_pattern={value!r}: write a non-empty tuple of {list(kinds)}")
    elif name == "rope_factors":
        if not isinstance(value, tuple) or any(type(v) not in (int, float) for v in value):
            raise ConfigError(f"rope_factors={value!r:.80}: write a tuple of numbers")
        for number in value:
            _check_range(name, number, *_FACTORS)
    elif name in _CHOICES:
        # 256.0 equals 256 and True equals 1, but neither can stand for it.
        if not any(type(value) is type(c) and value == c for c in _CHOICES[name]):
            raise ConfigError(f"{name}={value!r}: choose one of {list(_CHOICES[name])}")
    elif field.type is bool:
        if not isinstance(value, bool):
            raise ConfigError(f"{name}={value!r}: write true or false")
    elif field.type is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{name}={value!r}: write a whole number")
        if name in _LIMITS:
            _check_range(name, value, 0 if name in _MAY_BE_ZERO else 1, _LIMITS[name])
    else:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name}={value!r}: write a number")
        _check_range(name, value, *_RANGES[name])


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{name}={value}: must lie between {least} and {most}")


def _check_zeros(config: ModelConfig) -> None:
    """A dense network has a width, and so has an expert."""
    for name in ("expert_width",) if config.num_experts else ("ffn_width",):
        _check_range(name, getattr(config, name), 1, _LIMITS[name])


def _check_blocks(config: ModelConfig) -> None:
    if config.activation_block == "token" and config.weight_block != "row":
        raise ConfigError(
            f'activation_block="token" with weight_block={config.weight_block}: an activation block must lie '
            'inside one weight block; pass weight_block="row" or activation_block=128'
        )
    if (
        isinstance(config.activation_block, int)
        and isinstance(config.weight_block, int)
        and config.weight_block % config.activation_block
    ):
        raise ConfigError(
            f"activation_block={config.activation_block} does not divide weight_block={config.weight_block}: "
            f"pass activation_block={min(128, config.weight_block)}"
        )
    block = 4
    if isinstance(config.activation_block, int):
        block = config.activation_block
    if isinstance(config.weight_block, int):
        block = config.weight_block
    inputs = {"width": config.width, "num_heads * head_dim": config.num_heads * config.head_dim}
    if config.num_experts:
        inputs |= {
            "expert_width": config.expert_width,
            "shared_expert_width": config.shared_expert_width,
        }
    else:
        inputs["ffn_width"] = config.ffn_width
    if "delta" in config.layer_pattern:
        inputs["delta_heads * delta_value_dim"] = config.delta_heads * config.delta_value_dim
    for name, value in inputs.items():
        _check_multiple(name, value, block, "ternary linear", "weight_block")
        if config.rotation_block:
            _check_multiple(name, value, config.rotation_block, "rotated linear", "rotation_block")
    for name in ("table_format", "head_format"):
        columns = TABLE_BLOCKS.get(getattr(config, name), 1)
        _check_multiple("width", config.width, columns, f"{name} of that kind", name)


def _check_multiple(name: str, value: int, block: int, what: str, option: str) -> None:
    if value % block:
        raise ConfigError(
            f"{name}={value} is the input width of a {what} and not a multiple of its block of {block}: "
            f"use {-(-value // block) * block}, or another {option}"
        )


def _check_structure(config: ModelConfig) -> None:
    if config.tie_embeddings and config.head_format != "table":
        raise ConfigError(
            f"head_format={config.head_format!r} with tie_embeddings=True: the head is the embedding; write "
            "table_format"
        )
    if config.num_heads % config.num_kv_heads:
        raise ConfigError(
            f"num_heads={config.num_heads} is not a multiple of num_kv_heads={config.num_kv_heads}: "
            "each key head must serve the same number of query heads"
        )
    if "delta" in config.layer_pattern and config.delta_heads % (config.delta_key_heads or 1):
        raise ConfigError(
            f"delta_heads={config.delta_heads} is not a multiple of delta_key_heads={config.delta_key_heads}: each key "
            "head must serve the same number of value heads"
        )
    if config.rotation_block and config.num_experts:
        raise ConfigError(
            f"rotation_block={config.rotation_block} with num_experts={config.num_experts}: no matrix of an expert is "
            "rotated; use a dense network"
        )
    if config.num_experts and config.experts_per_token not in range(1, config.num_experts + 1):
        raise ConfigError(
            f"experts_per_token={config.experts_per_token}: must lie between 1 and num_experts={config.num_experts}"
        )
    if config.num_layers * config.num_experts > _MOST_EXPERTS:
        raise ConfigError(
            f"num_layers={config.num_layers} with num_experts={config.num_experts}: a model holds at most "
            f"{_MOST_EXPERTS} experts in all its layers; use fewer"
        )
    looped = config.num_layers - config.loop_prelude - config.loop_coda
    if config.loop_prelude < 0 or config.loop_coda < 0 or looped < 1:
        raise ConfigError(
            f"loop_prelude={config.loop_prelude} and loop_coda={config.loop_coda} leave {looped} of "
            f"{config.num_layers} layers for the loop: leave at least one, and no negative counts"
        )
    if config.exit_threshold < 1.0:
        if config.loop_count == 1:
            raise ConfigError(
                f"exit_threshold={config.exit_threshold} without a loop: set loop_count above 1 or exit_threshold=1"
            )
        kinds = [
            config.layer_pattern[i % len(config.layer_pattern)] for i in range(config.num_layers)
        ]
        if "delta" in kinds[config.loop_prelude : config.num_layers - config.loop_coda]:
            raise ConfigError(
                f"exit_threshold={config.exit_threshold} with a delta layer inside the loop: its recurrent state needs "
                "every loop step; set exit_threshold=1 or keep delta layers in the prelude and coda"
            )


def _check_rotation(config: ModelConfig) -> None:
    name = "rope_dims" if config.rope_dims else "head_dim"
    dims = getattr(config, name)
    if dims % 2:
        raise ConfigError(f"{name}={dims} is odd: the rotation needs pairs of features")
    if dims > config.head_dim:
        raise ConfigError(
            f"rope_dims={dims} is more than head_dim={config.head_dim}: rotate at most all features of a head"
        )
    scaling = config.rope_type
    if scaling in ("llama3", "yarn"):
        if config.rope_original_context < 1:
            raise ConfigError(
                f'rope_type="{scaling}" without rope_original_context: write the tokens that the model was first '
                "trained for"
            )
        if config.rope_low >= config.rope_high:
            raise ConfigError(
                f"rope_low={config.rope_low} is not below rope_high={config.rope_high}: write the smaller number of "
                "turns first"
            )
        if scaling == "yarn" and config.rope_theta == 1:
            raise ConfigError(
                'rope_theta=1.0 with rope_type="yarn": all pairs turn alike; choose a larger base'
            )
    expected = dims // 2 if scaling == "factors" else 0
    if len(config.rope_factors) != expected:
        raise ConfigError(
            f'rope_factors has {len(config.rope_factors)} numbers with rope_type="{scaling}": write {expected}, one '
            "for each pair of rotated features with factors, and none without"
        )


def hybrid_pattern(*, delta: int, attention: int = 1) -> tuple[LayerKind, ...]:
    """Pattern of `delta` Gated DeltaNet layers followed by `attention` attention layers.

    Examples
    --------
    >>> hybrid_pattern(delta=3)
    ('delta', 'delta', 'delta', 'attention')
    """
    deltas: list[LayerKind] = ["delta"] * delta
    attentions: list[LayerKind] = ["attention"] * attention
    return (*deltas, *attentions)


def config_to_dict(config: ModelConfig) -> dict[str, object]:
    """All fields by name, with tuples as lists, ready for JSON."""
    fields = dataclasses.asdict(config)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


def config_from_dict(fields: Mapping[str, object]) -> ModelConfig:
    """Rebuild a configuration from `config_to_dict`; absent optional fields take their defaults."""
    for name in fields:
        if name not in _FIELDS:
            raise ConfigError(
                f"unknown configuration field {name!r}{did_you_mean(name, _FIELDS)}: remove it, or upgrade "
                "nanochat-ternary"
            )
    missing = [
        n for n, f in _FIELDS.items() if f.default is dataclasses.MISSING and n not in fields
    ]
    if missing:
        raise ConfigError(
            f"configuration field {missing[0]!r} is missing: it has no default, so write it"
        )
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
    # ModelConfig itself checks the type of every value.
    config = ModelConfig(**values)  # type: ignore[arg-type]
    # JSON may write 10000.0 as 10000; only now is it known to fit a float.
    floats = {name: float(getattr(config, name)) for name, f in _FIELDS.items() if f.type is float}
    factors = tuple(map(float, config.rope_factors))
    # Fields of type float.
    return dataclasses.replace(config, rope_factors=factors, **floats)  # type: ignore[arg-type]
