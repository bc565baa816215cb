"""This file holds the shapes of all weights that a configuration asks for; nothing is allocated."""

import math
from collections.abc import Sequence

from nanochat.config import TABLE_BLOCKS, LayerKind, ModelConfig, TableFormat
from nanochat.weights import (
    Attention,
    Delta,
    Exit,
    Experts,
    FeedForward,
    Join,
    Layer,
    Mhc,
    Signs,
    Site,
    Spec,
    Weights,
    named_leaves,
    scale_dtype,
)

__all__ = [
    "delta_key_heads",
    "head_format",
    "layer_kinds",
    "layer_pattern",
    "mix_size",
    "num_parameters",
    "run_order",
    "shapes",
]


def layer_kinds(config: ModelConfig) -> tuple[LayerKind, ...]:
    """The kind of every layer, from the repeated pattern."""
    pattern = config.layer_pattern
    return tuple(pattern[i % len(pattern)] for i in range(config.num_layers))


def layer_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest pattern that gives layers of such kinds.

    Examples
    --------
    >>> layer_pattern(["delta", "attention", "delta"])
    ('delta', 'attention')
    """
    count = len(kinds)
    size = next(
        n for n in range(1, count + 1) if all(kinds[i] == kinds[i % n] for i in range(count))
    )
    return tuple(kinds[:size])


def run_order(config: ModelConfig) -> list[int]:
    """Numbers of the layers in the order in which they run: those of a loop once for every step."""
    first, last = config.loop_prelude, config.num_layers - config.loop_coda
    looped = list(range(first, last)) * config.loop_count
    return [*range(first), *looped, *range(last, config.num_layers)]


def head_format(config: ModelConfig) -> TableFormat:
    """How the table is stored that reads out the last layer."""
    return config.table_format if config.head_format == "table" else config.head_format


def delta_key_heads(config: ModelConfig) -> int:
    """Heads of queries and keys in Gated DeltaNet layers."""
    return config.delta_key_heads or config.delta_heads


def mix_size(config: ModelConfig) -> int:
    """Mixing logits of one mHC site: n! for lite, n * n for sinkhorn, 0 for identity."""
    n = config.num_streams
    return {"lite": math.factorial(n), "sinkhorn": n * n, "identity": 0}[config.mixer]


def num_parameters(config: ModelConfig) -> int:
    """Trained numbers in the model; a tied head counts once.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> num_parameters(preset("tiny"))
    5771648
    """
    return sum(math.prod(spec.shape) for _, spec in named_leaves(shapes(config)))


def shapes(config: ModelConfig) -> Weights[Spec]:
    """The tree of weights with a `Spec` for every leaf."""
    layers = tuple(_layer(config, kind, config.num_streams) for kind in layer_kinds(config))
    return Weights(
        embedding=_table(config, config.table_format, "embedding"),
        layers=layers,
        norm=_dense("ones", config.width),
        head=None if config.tie_embeddings else _table(config, head_format(config), "head"),
        exit=_exit(config) if config.loop_count > 1 else None,
        # The extra heads read the collapsed stream, so they are ordinary residual layers.
        ahead=tuple(_layer(config, "attention", 1) for _ in range(config.num_ahead)),
        signs=_signs(config) if config.rotation_block else None,
        joins=tuple(
            _join(config) for _ in range(config.num_ahead) if config.ahead_kind == "sequential"
        ),
    )


def _dense(initial: str, *shape: int) -> Spec:
    return Spec(kind="dense", shape=shape, initial=initial)


def _linear(config: ModelConfig, rows: int, columns: int, initial: str = "linear") -> Spec:
    weight, activation = config.weight_block, config.activation_block
    return Spec(
        kind="ternary",
        shape=(rows, columns),
        initial=initial,
        weight_block=columns if weight == "row" else weight,
        activation_block=columns if activation == "token" else activation,
    )


def _table(config: ModelConfig, form: TableFormat, initial: str) -> Spec:
    if form == "ternary":
        return _linear(config, config.vocab_size, config.width, initial)
    shape, activation = (config.vocab_size, config.width), config.activation_block
    if form == "dense":
        return Spec(kind="dense", shape=shape, initial=initial)
    if form == "float16" or form == "bfloat16":
        return Spec(kind="dense", shape=shape, initial=initial, dtype=form)
    columns = config.width if activation == "token" else activation
    block = TABLE_BLOCKS.get(form, config.width)
    return Spec(
        kind="int8",
        shape=shape,
        initial=initial,
        weight_block=block,
        # An activation block lies inside one weight block.
        activation_block=min(columns, block),
        dtype=scale_dtype(block),
    )


def _layer(config: ModelConfig, kind: LayerKind, num_streams: int) -> Layer[Spec]:
    return Layer(
        mixer_site=_site(config, num_streams),
        mixer=_attention(config) if kind == "attention" else _delta(config),
        network_site=_site(config, num_streams),
        network=_experts(config) if config.num_experts else _network(config, config.ffn_width),
    )


def _site(config: ModelConfig, n: int) -> Site[Spec]:
    norm = _dense("ones", config.width)
    if n == 1:
        return Site(norm=norm, mhc=None)
    mix = mix_size(config)
    dynamic = config.coefficients == "dynamic"
    return Site(
        norm=norm,
        mhc=Mhc(
            read=_dense("mhc_stream", n),
            write=_dense("mhc_stream", n),
            mix=_dense(f"mhc_{config.mixer}", mix) if mix else None,
            projection=_projection(2 * n + mix, n * config.width) if dynamic else None,
            gates=_dense("mhc_gates", 3) if dynamic else None,
        ),
    )


def _projection(rows: int, columns: int) -> Spec:
    return Spec(kind="dense", shape=(rows, columns), initial="zeros", dtype="float16")


def _join(config: ModelConfig) -> Join[Spec]:
    return Join(
        state_norm=_dense("ones", config.width),
        state=_linear(config, config.width, config.width),
        token_norm=_dense("ones", config.width),
        token=_linear(config, config.width, config.width),
    )


def _attention(config: ModelConfig) -> Attention[Spec]:
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    return Attention(
        q=_linear(config, queries, config.width),
        k=_linear(config, keys, config.width),
        v=_linear(config, keys, config.width),
        o=_linear(config, config.width, queries, "output"),
        gate=_linear(config, queries, config.width) if config.attention_gate else None,
        q_norm=_dense("ones", config.head_dim) if config.qk_norm else None,
        k_norm=_dense("ones", config.head_dim) if config.qk_norm else None,
        sub_norm=_dense("ones", queries) if config.sub_norm else None,
    )


def _delta(config: ModelConfig) -> Delta[Spec]:
    heads, taps = config.delta_heads, config.delta_conv_width
    keys, values = delta_key_heads(config) * config.delta_key_dim, heads * config.delta_value_dim
    return Delta(
        q=_linear(config, keys, config.width),
        k=_linear(config, keys, config.width),
        v=_linear(config, values, config.width),
        gate=_linear(config, values, config.width),
        o=_linear(config, config.width, values, "output"),
        q_conv=_dense("conv", keys, taps),
        k_conv=_dense("conv", keys, taps),
        v_conv=_dense("conv", values, taps),
        beta=_delta_gate(config, heads),
        decay=_delta_gate(config, heads),
        log_rate=_dense("log_rate", heads),
        time_bias=_dense("time_bias", heads),
        norm=_dense("ones", config.delta_value_dim),
        sub_norm=_dense("ones", values) if config.sub_norm else None,
    )


def _delta_gate(config: ModelConfig, heads: int) -> Spec:
    shape, form = (heads, config.width), config.delta_gates
    if form == "ternary":
        return _linear(config, *shape)
    return Spec(
        kind="dense", shape=shape, initial="linear", dtype="float32" if form == "dense" else form
    )


def _signs(config: ModelConfig) -> Signs[Spec]:
    kinds = layer_kinds(config)
    attention = config.num_heads * config.head_dim
    delta = config.delta_heads * config.delta_value_dim
    return Signs(
        stream=_dense("signs", config.width),
        attention=_dense("signs", attention) if "attention" in kinds or config.num_ahead else None,
        delta=_dense("signs", delta) if "delta" in kinds else None,
        network=_dense("signs", config.ffn_width),
    )


def _network(config: ModelConfig, hidden: int) -> FeedForward[Spec]:
    return FeedForward(
        gate=None if config.activation == "relu2" else _linear(config, hidden, config.width),
        up=_linear(config, hidden, config.width),
        down=_linear(config, config.width, hidden, "output"),
        sub_norm=_dense("ones", hidden) if config.sub_norm else None,
    )


def _experts(config: ModelConfig) -> Experts[Spec]:
    return Experts(
        router=_dense("linear", config.num_experts, config.width),
        networks=tuple(_network(config, config.expert_width) for _ in range(config.num_experts)),
        shared=_network(config, config.shared_expert_width) if config.shared_expert_width else None,
    )


def _exit(config: ModelConfig) -> Exit[Spec]:
    return Exit(
        norm=_dense("ones", config.width),
        weight=_dense("zeros", 1, config.width),
        bias=_dense("zeros", 1),
    )
