"""This file holds the folder that stock mlx-lm and transformers read: names of modules, ``config.json`` and the rest.

Both take the layout of the Hugging Face Hub, in which a model of this package is a Qwen3, a Llama or a Qwen3-MoE.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.bundle import CARD, Bundle, default_generation
from nanochat.config import ModelConfig
from nanochat.errors import FormatError, ShapeError
from nanochat.export.stock.architectures import Runtime, stock_architecture
from nanochat.model import ntk_theta
from nanochat.tensors import Tensor, load_tensors
from nanochat.text.tokenizer import BEGINNING, Tokenizer
from nanochat.weights import Stored, named_leaves

__all__ = [
    "StockTensors",
    "exported_leaves",
    "module_name",
    "other_files",
    "read_config",
    "stock_texts",
]

_CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_MODULES = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_IN_LAYER = {
    "mixer_site.norm": "input_layernorm",
    "mixer.q": "self_attn.q_proj",
    "mixer.k": "self_attn.k_proj",
    "mixer.v": "self_attn.v_proj",
    "mixer.o": "self_attn.o_proj",
    "mixer.q_norm": "self_attn.q_norm",
    "mixer.k_norm": "self_attn.k_norm",
    "network_site.norm": "post_attention_layernorm",
    "network.gate": "mlp.gate_proj",
    "network.up": "mlp.up_proj",
    "network.down": "mlp.down_proj",
    "network.router": "mlp.gate",
}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOKENIZER = "tokenizer.json"


def module_name(name: str) -> str:
    """The name on the Hub of the module that holds one of our tensors; its numbers are ``weight`` in it.

    Examples
    --------
    >>> module_name("layers.3.mixer.o"), module_name("layers.0.network.networks.7.up")
    ('model.layers.3.self_attn.o_proj', 'model.layers.0.mlp.experts.7.up_proj')
    """
    match name.split("."):
        case ["layers", layer, "network", "networks", expert, linear]:
            return f"model.layers.{layer}.mlp.experts.{expert}.{linear}_proj"
        case ["layers", layer, *rest]:
            return f"model.layers.{layer}.{_IN_LAYER['.'.join(rest)]}"
    return _MODULES[name]


def read_config(config: ModelConfig) -> ModelConfig:
    """What a model is once a stock runtime has it: heads that predict further tokens are for training."""
    return dataclasses.replace(config, num_ahead=0)


def exported_leaves(bundle: Bundle) -> dict[str, Stored]:
    """The leaves that a stock runtime has a place for, by name."""
    return {
        name: leaf for name, leaf in named_leaves(bundle.weights) if not name.startswith("ahead.")
    }


def stock_texts(bundle: Bundle, runtime: Runtime) -> dict[str, dict[str, object]]:
    """``config.json`` and ``generation_config.json`` of a model that the runtime can run."""
    config = bundle.config
    architecture = stock_architecture(config, runtime)
    generation = {**default_generation(bundle.tokenizer), **bundle.generation}
    fields: dict[str, object] = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        # Numbers are stored and meant to be computed with in float32: what is narrower is so without loss.
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width or config.expert_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": ntk_theta(config),
        "tie_word_embeddings": config.tie_embeddings,
        **{key: generation[key] for key in _IDS if key in generation},
    }
    if config.num_experts:
        fields |= {
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.experts_per_token,
            "moe_intermediate_size": config.expert_width,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return {"config.json": fields, "generation_config.json": generation}


def other_files(bundle: Bundle) -> dict[str, bytes]:
    """The tokenizer's files, with the chat template, and the card if there is one.

    Both runtimes ask ``tokenizer.json`` alone what stands before a text, and nothing else about it.
    """
    files = dict(bundle.tokenizer.files())
    if isinstance(bundle.tokenizer, Tokenizer):
        bpe = json.loads(files[_TOKENIZER])
        content = json.dumps(bpe | {"post_processor": BEGINNING}, indent=2, ensure_ascii=False)
        files[_TOKENIZER] = content.encode()
    return {**files, CARD: bundle.card} if bundle.card else files


class StockTensors:
    """The tensors of a folder, taken one by one; what is left at the end is no part of the model.

    Parameters
    ----------
    folder : Path
        Where the files lie; every byte is compared with its checksum, if it has one.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, Tensor] = load_tensors(folder)
        for tensor in self._tensors.values():
            tensor.verify()

    def take(self, key: str, *, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
        """The numbers of a tensor, a view of the file."""
        tensor = self._tensors.pop(key, None)
        if tensor is None:
            raise FormatError(
                f"{self._folder}: the tensor {key} is missing: the folder is another model's, or a download is "
                "incomplete; fetch it again"
            )
        if tensor.shape != shape:
            raise ShapeError(
                f"{tensor.path}: {key} has shape {list(tensor.shape)} but the configuration asks for {list(shape)}: "
                "one of the two is another model's; fetch both again"
            )
        if tensor.dtype != dtype:
            raise FormatError(
                f"{tensor.path}: {key} is of type {tensor.dtype}, must be {dtype}; export the model again"
            )
        return tensor.array()

    def require_none_left(self) -> None:
        """Refuse tensors that nobody has taken."""
        if self._tensors:
            raise FormatError(
                f"{self._folder}: {len(self._tensors)} tensors are no part of the model, the first is "
                f"{min(self._tensors)!r:.80}: the folder is another model's; fetch it again"
            )
