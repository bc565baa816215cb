"""This file holds the folder that stock mlx-lm and transformers read: names of modules, ``config.json`` and the rest.

Both take the layout of the Hugging Face Hub, in which a model of this package is a Qwen3, a Llama or a Qwen3-MoE.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.bundle import CARD, Bundle, default_generation
from nanochat.checkpoint import require_complete, require_legal
from nanochat.config import ModelConfig
from nanochat.errors import FormatError, ShapeError
from nanochat.export.folders.names import module_name
from nanochat.export.format import Progress
from nanochat.export.stock.architectures import Runtime, stock_architecture
from nanochat.export.transform import without_ahead
from nanochat.rotary import ntk_theta
from nanochat.shapes import shapes
from nanochat.tensors import Tensor, load_tensors, save_tensors
from nanochat.weights import Spec, Stored, Weights, map_leaves, named_leaves

__all__ = ["Array", "Packing", "load_folder", "write_folder"]

Array = NDArray[np.generic]

_CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a runtime stores leaves: one in each module, as tensors that have their names in it.

    Parameters
    ----------
    runtime : Runtime
    framework : str
        What the header of a file of tensors says.
    stack : str
        The module that has the same matrix of all experts, stacked; empty where each expert has modules of its own.
    fields : callable
        What ``config.json`` has besides, of the modules and what each holds.
    pack, unpack : callable
        The tensors of a leaf of that name, and its inverse.
    parts : callable
        Name, type and shape of those tensors.
    """

    runtime: Runtime
    framework: str
    stack: str = ""
    fields: Callable[[Mapping[str, Spec]], dict[str, object]]
    pack: Callable[[str, Stored], dict[str, Array]]
    unpack: Callable[[str, Spec, Mapping[str, Array]], Stored]
    parts: Callable[[Spec], Iterable[tuple[str, str, tuple[int, ...]]]]

    def modules(self, names: Iterable[str]) -> dict[str, list[str]]:
        """The leaves of each module: one, or those of all experts in their order."""
        modules: dict[str, list[str]] = {}
        for name in names:
            module = module_name(name)
            if self.stack:
                module = re.sub(r"\.experts\.\d+\.", f".{self.stack}.", module)
            modules.setdefault(module, []).append(name)
        return modules

    def is_stacked(self, module: str) -> bool:
        """Whether the module has a first axis of experts."""
        return self.stack in module.split(".")


def write_folder(folder: Path, bundle: Bundle, packing: Packing, progress: Progress | None) -> str:
    """Write a model for a stock runtime, in place of that which the folder holds, and return its architecture."""
    texts = _texts(bundle, packing.runtime)
    require_complete(bundle.config, bundle.weights)
    bundle = without_ahead(bundle)
    leaves, specs = dict(named_leaves(bundle.weights)), dict(named_leaves(shapes(bundle.config)))
    modules = packing.modules(leaves)
    tensors: dict[str, Array] = {}
    for done, (module, members) in enumerate(modules.items(), 1):
        packed = [packing.pack(name, leaves[name]) for name in members]
        for part, array in packed[0].items():
            whole = np.stack([p[part] for p in packed]) if packing.is_stacked(module) else array
            tensors[f"{module}.{part}"] = whole
        if progress is not None:
            progress(done, len(modules))
    held = {module: specs[members[0]] for module, members in modules.items()}
    texts["config.json"] |= packing.fields(held)
    metadata = {"format": packing.framework}
    others = bundle.tokenizer.files() | ({CARD: bundle.card} if bundle.card else {})
    save_tensors(folder, tensors, texts=texts, others=others, metadata=metadata)
    return str(texts["config.json"]["model_type"])


def load_folder(
    folder: Path, config: ModelConfig, packing: Packing
) -> tuple[ModelConfig, Weights[Stored]]:
    """Read what `write_folder` has written of a model of that configuration, of which the runtime's own says less.

    Heads that predict further tokens are not in it, nor in the configuration that is returned.
    """
    config = dataclasses.replace(config, num_ahead=0)
    stock_architecture(config, packing.runtime)
    specs = shapes(config)
    spec_of = dict(named_leaves(specs))
    tensors = load_tensors(folder)
    for tensor in tensors.values():
        tensor.verify()
    arrays: dict[str, dict[str, Array]] = {name: {} for name in spec_of}
    for module, members in packing.modules(spec_of).items():
        stack = (len(members),) if packing.is_stacked(module) else ()
        for part, dtype, shape in packing.parts(spec_of[members[0]]):
            array = _take(folder, tensors, f"{module}.{part}", dtype, (*stack, *shape))
            for number, name in enumerate(members):
                arrays[name][part] = array[number] if stack else array
    if tensors:
        raise FormatError(
            f"{folder}: {len(tensors)} tensors are no part of the model, the first is "
            f"{min(tensors)!r:.80}: the folder is another model's; fetch it again"
        )

    def unpack(name: str, spec: Spec) -> Stored:
        leaf = packing.unpack(name, spec, arrays[name])
        require_legal(name, leaf)
        return leaf

    return config, map_leaves(unpack, specs)


def _texts(bundle: Bundle, runtime: Runtime) -> dict[str, dict[str, object]]:
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


def _take(
    folder: Path, tensors: dict[str, Tensor], key: str, dtype: str, shape: tuple[int, ...]
) -> Array:
    """The numbers of a tensor, a view of the file; what nobody takes is no part of the model."""
    tensor = tensors.pop(key, None)
    if tensor is None:
        raise FormatError(
            f"{folder}: the tensor {key} is missing: the folder is another model's, or a download is "
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
