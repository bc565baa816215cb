"""This file holds the names on the Hub of a model's modules, and where each of our leaves lies in their tensors.

Heads stand there in the order that they have here, so that nothing is put in order.

References
----------
.. [1] github.com/huggingface/transformers, src/transformers/models, version 5.24.
"""

import functools

import numpy as np

from nanochat.config import ModelConfig
from nanochat.export.places import Index, Place, gated_rows
from nanochat.shapes import delta_key_heads, layer_kinds, shapes
from nanochat.weights import named_leaves

__all__ = ["folder_places", "module_name"]

_MODULES = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_IN_LAYER = {
    "mixer_site.norm": "input_layernorm",
    "mixer.q": "self_attn.q_proj",
    "mixer.k": "self_attn.k_proj",
    "mixer.v": "self_attn.v_proj",
    "mixer.gate": "self_attn.q_proj",
    "mixer.o": "self_attn.o_proj",
    "mixer.q_norm": "self_attn.q_norm",
    "mixer.k_norm": "self_attn.k_norm",
    "mixer.sub_norm": "self_attn.attn_sub_norm",
    "network_site.norm": "post_attention_layernorm",
    "network.gate": "mlp.gate_proj",
    "network.up": "mlp.up_proj",
    "network.down": "mlp.down_proj",
    "network.sub_norm": "mlp.ffn_sub_norm",
    "network.router": "mlp.gate",
}
# Tensors of a Gated DeltaNet layer, of which some hold several leaves.
_DELTA = {
    "mixer.q": "in_proj_qkv.weight",
    "mixer.k": "in_proj_qkv.weight",
    "mixer.v": "in_proj_qkv.weight",
    "mixer.gate": "in_proj_z.weight",
    "mixer.beta": "in_proj_b.weight",
    "mixer.decay": "in_proj_a.weight",
    "mixer.o": "out_proj.weight",
    "mixer.q_conv": "conv1d.weight",
    "mixer.k_conv": "conv1d.weight",
    "mixer.v_conv": "conv1d.weight",
    "mixer.log_rate": "A_log",
    "mixer.time_bias": "dt_bias",
    "mixer.norm": "norm.weight",
}


def module_name(name: str, *, stack: str = "") -> str:
    """The name on the Hub of the module that holds one of our tensors; its numbers are ``weight`` in it.

    A `stack` has the same matrix of all experts.

    Examples
    --------
    >>> module_name("layers.3.mixer.o"), module_name("layers.0.network.networks.7.up")
    ('model.layers.3.self_attn.o_proj', 'model.layers.0.mlp.experts.7.up_proj')
    """
    match name.split("."):
        case ["layers", layer, "network", "networks", expert, linear]:
            where = stack or f"experts.{expert}"
            return f"model.layers.{layer}.mlp.{where}.{linear}_proj"
        case ["layers", layer, *rest]:
            return f"model.layers.{layer}.{_IN_LAYER['.'.join(rest)]}"
    return _MODULES[name]


def folder_places(config: ModelConfig, *, stack: str = "") -> dict[str, Place]:
    """The place of every leaf but signs, in the order of the weights; Gated DeltaNet is that of ``qwen3_5``.

    The module called `stack` has the same matrix of all experts; without one, each has modules of its own.
    """
    kinds, found = layer_kinds(config), {}
    for name, _ in named_leaves(shapes(config)):
        if name.startswith("signs."):
            continue
        layer, _, rest = name.removeprefix("layers.").partition(".")
        if name.startswith("layers.") and kinds[int(layer)] == "delta" and rest in _DELTA:
            tensor = f"model.layers.{layer}.linear_attn.{_DELTA[rest]}"
            found[name] = Place(tensor=tensor, rows=_delta_rows(config, rest))
            continue
        rows = None
        if config.attention_gate and rest in ("mixer.q", "mixer.gate"):
            rows = gated_rows(config, gate=rest == "mixer.gate")
        expert = rest.split(".")[2] if stack and rest.startswith("network.networks.") else None
        found[name] = Place(
            tensor=f"{module_name(name, stack=stack)}.weight",
            rows=rows,
            expert=None if expert is None else int(expert),
        )
    return found


# What a damaged file says of heads may make these large, and of layers many.
@functools.lru_cache(maxsize=16)
def _delta_rows(config: ModelConfig, rest: str) -> Index | None:
    keys = delta_key_heads(config) * config.delta_key_dim
    values = config.delta_heads * config.delta_value_dim
    match rest.removesuffix("_conv"):
        case "mixer.q":
            return np.arange(keys)
        case "mixer.k":
            return keys + np.arange(keys)
        case "mixer.v":
            return 2 * keys + np.arange(values)
    return None
