"""This file holds which stock architecture of another runtime computes a model, and if none does, why.

A *stock* architecture is one that the unmodified runtime builds by itself. It has places for the weights of a plain
transformer, with some options; what it has no place for cannot be left out without computing something else.

References
----------
.. [1] github.com/ggml-org/llama.cpp, src/models, commit 0c1e570.
.. [2] github.com/ml-explore/mlx-lm, mlx_lm/models, version 0.32.
.. [3] github.com/huggingface/transformers, src/transformers/models, version 5.
"""

from collections.abc import Iterator
from typing import Literal, get_args

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
from nanochat.export.folders.rotations import GROUP, ROTATED
from nanochat.shapes import head_format, layer_kinds, shapes
from nanochat.weights import named_leaves

__all__ = ["Runtime", "obstacles", "stock_architecture", "stock_runtimes"]

Runtime = Literal["llama.cpp", "mlx-lm", "transformers"]

# llama.cpp ends the process on a file with more.
_MOST_LAYERS = 512

# Columns that mlx-lm rotates at once.
_ROTATED_BLOCKS = (512, 1024, 2048, 4096, 8192)

# The architecture with a norm of queries and keys, without, with sub-norms, with experts, with Gated DeltaNet, and the
# last with rotated inputs.
_ARCHITECTURES: dict[Runtime, dict[str, str]] = {
    "llama.cpp": {
        "qk_norm": "qwen3",
        "plain": "qwen2",
        "sub_norm": "bitnet",
        "experts": "qwen3moe",
        "delta": "qwen35",
    },
    "mlx-lm": {
        "qk_norm": "qwen3",
        "plain": "llama",
        "experts": "qwen3_moe",
        "delta": "qwen3_5",
        "rotated": ROTATED,
    },
    "transformers": {"qk_norm": "qwen3", "plain": "llama", "experts": "qwen3_moe"},
}


def stock_architecture(config: ModelConfig, runtime: Runtime) -> str:
    """The runtime's own name of the architecture that computes models of this configuration."""
    reasons = obstacles(config, runtime)
    if reasons:
        raise ConfigError(
            f"stock {runtime} cannot run this model: {'; '.join(reasons)}. Export it for nanochat-ternary instead, "
            f"or train a model without these options; what was made for {runtime} runs there as it is"
        )
    return _ARCHITECTURES[runtime]["rotated" if config.rotation_block else _family(config)]


def obstacles(config: ModelConfig, runtime: Runtime) -> list[str]:
    """Each option for which the runtime's architectures have no place, with the reason; empty if there is none.

    Heads that predict further tokens (`num_ahead`) are no obstacle: they are for training.
    """
    family = _family(config)
    if family not in _ARCHITECTURES[runtime]:
        written = " and ".join(_ARCHITECTURES[runtime].values())
        no_place = {
            "sub_norm": f"sub_norm=true: models are written for it as {written}, which have no norms before output "
            "linears",
            "delta": f"layer_pattern={list(config.layer_pattern)}: models are written for it as {written}, which have "
            "no Gated DeltaNet",
        }
        return [*_everywhere(config, family, runtime), no_place[family]]
    return [
        *_everywhere(config, family, runtime),
        *_of_family(config, family),
        *_of_runtime(config, family, runtime),
    ]


def stock_runtimes(config: ModelConfig) -> dict[str, str]:
    """Each stock runtime, and why it cannot run models of this configuration; empty if it can."""
    return {name: "; ".join(obstacles(config, name)) for name in get_args(Runtime)}


def _family(config: ModelConfig) -> str:
    if config.num_experts:
        return "experts"
    if "delta" in config.layer_pattern:
        return "delta"
    if config.sub_norm:
        return "sub_norm"
    return "qk_norm" if config.qk_norm else "plain"


def _everywhere(config: ModelConfig, family: str, runtime: Runtime) -> Iterator[str]:
    if config.num_streams > 1:
        yield f"num_streams={config.num_streams}: it has one residual stream, and no mHC"
    if config.loop_count > 1:
        yield (
            f"loop_count={config.loop_count}: it runs each layer once; a fixed number of loops can be unrolled, which "
            "writes the looped layers that many times"
        )
    if config.attention_gate and family != "delta":
        yield "attention_gate=true: it does not gate what attention gives"
    if config.activation != "swiglu":
        yield f'activation="{config.activation}": its networks are SwiGLU'
    if config.rotation_block and "rotated" not in _ARCHITECTURES[runtime]:
        yield f"rotation_block={config.rotation_block}: it does not rotate the inputs of matrices"
    elif config.rotation_block and family != "delta":
        yield (
            f"rotation_block={config.rotation_block} without Gated DeltaNet: it rotates the inputs of hybrids only"
        )
    for name in ("embedding_scale", "residual_scale", "logit_scale"):
        if getattr(config, name) != 1:
            yield f"{name}={getattr(config, name)}: models are written for it without scales"
    for name, form in (("table_format", config.table_format), ("head_format", head_format(config))):
        if form not in ("int8", "ternary", "dense"):
            yield f'{name}="{form}": models are written for it with tables in int8, ternary or dense'
            break
    if config.rope_type != "ntk":
        yield f'rope_type="{config.rope_type}": models are written for it with a rotation of one base'
    if config.rope_dims not in (0, config.head_dim) and family != "delta":
        yield f"rope_dims={config.rope_dims}: it rotates all {config.head_dim} features of a head"
    if config.rope_magnitude != 1:
        yield f"rope_magnitude={config.rope_magnitude}: its rotation has no magnitude"


def _of_family(config: ModelConfig, family: str) -> Iterator[str]:
    if family == "experts":
        if "delta" in config.layer_pattern:
            yield (
                f"layer_pattern={list(config.layer_pattern)} with experts: its mixtures have no Gated DeltaNet"
            )
        if not config.qk_norm:
            yield "qk_norm=false with experts: its mixtures normalise queries and keys"
        if config.sub_norm:
            yield "sub_norm=true with experts: its mixtures have no norms before output linears"
        if config.shared_expert_width:
            yield (
                f"shared_expert_width={config.shared_expert_width}: its mixtures have no expert that serves every token"
            )
    if family == "delta":
        yield from _of_delta(config)
    if family == "sub_norm":
        if config.qk_norm:
            yield "qk_norm=true with sub_norm=true: no architecture has both norms"
        if not config.tie_embeddings:
            yield "tie_embeddings=false with sub_norm=true: its head is the embedding"


def _of_delta(config: ModelConfig) -> Iterator[str]:
    kinds = layer_kinds(config)
    interval = kinds.index("attention") + 1 if "attention" in kinds else 0
    expected = [
        "attention" if interval and (i + 1) % interval == 0 else "delta" for i in range(len(kinds))
    ]
    if interval < 2 or list(kinds) != expected:
        yield f"layer_pattern={list(config.layer_pattern)}: each n-th layer attends, and no other does"
    for name in ("attention_gate", "qk_norm"):
        if not getattr(config, name):
            yield f"{name}=false: its attention has one"
    if config.sub_norm:
        yield "sub_norm=true: it has no norms before output linears"


def _of_runtime(config: ModelConfig, family: str, runtime: Runtime) -> Iterator[str]:
    size = config.num_heads * config.head_dim
    if runtime == "llama.cpp":
        if family in ("plain", "sub_norm") and size != config.width:
            yield f"num_heads * head_dim={size} without qk_norm: must be the width of {config.width}"
        if family == "delta" and config.delta_key_dim != config.delta_value_dim:
            yield (
                f"delta_key_dim={config.delta_key_dim} and delta_value_dim={config.delta_value_dim}: its heads are as "
                "wide for values as for keys"
            )
        if config.num_layers > _MOST_LAYERS:
            yield f"num_layers={config.num_layers}: it runs at most {_MOST_LAYERS}"
    if runtime == "transformers" and family == "plain" and config.width % config.num_heads:
        yield f"num_heads={config.num_heads} without qk_norm: must divide the width of {config.width}"
    if runtime == "mlx-lm":
        matrices = [spec for _, spec in named_leaves(shapes(config)) if spec.kind != "dense"]
        odd = sorted({spec.shape[1] for spec in matrices if spec.shape[1] % 32})
        if odd:
            yield f"matrices of {odd} columns: it packs groups of 32, 64 or 128 columns"
        if family == "delta" and config.delta_conv_width == 1:
            yield "delta_conv_width=1: its convolutions have two taps or more"
        if config.rotation_block:
            yield from _of_rotated(config)


def _of_rotated(config: ModelConfig) -> Iterator[str]:
    """What mlx-lm has no place for in models with rotated inputs alone."""
    block = config.rotation_block
    if block not in _ROTATED_BLOCKS:
        *first, last = map(str, _ROTATED_BLOCKS)
        yield f"rotation_block={block}: it rotates blocks of {', '.join(first)} or {last} columns"
    if config.weight_block != "row" and config.weight_block % GROUP:
        yield (
            f"weight_block={config.weight_block} with rotation_block={block}: its rotated matrices have a scale for "
            f"{GROUP} columns"
        )
    for name, form in (("table_format", config.table_format), ("head_format", head_format(config))):
        if form == "int8":
            yield f'{name}="int8" with rotation_block={block}: its rotated models have tables in ternary or dense'
            break
