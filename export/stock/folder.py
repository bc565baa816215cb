"""This file holds the folder that stock mlx-lm and transformers read: names of modules, ``config.json`` and the rest.

Both take the layout of the Hugging Face Hub, in which a model of this package is a Qwen3, a Llama or a Qwen3-MoE.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.bundle import CARD, Bundle, default_generation
from nanochat.checkpoint import require_complete, require_legal
from nanochat.config import ModelConfig
from nanochat.errors import FormatError, ShapeError
from nanochat.export.folders.configuration import hybrid_fields, text_type
from nanochat.export.folders.names import folder_places
from nanochat.export.folders.rotations import (
    rotated_fields,
    rotated_modules,
    signs_of_modules,
    signs_of_roles,
)
from nanochat.export.folders.tensors import TEXT_PART, FolderTensors
from nanochat.export.format import Progress
from nanochat.export.places import Place, row_slice, tensor_shapes
from nanochat.export.stock.architectures import Runtime, stock_architecture
from nanochat.export.transform import without_ahead
from nanochat.rotary import ntk_theta
from nanochat.shapes import shapes
from nanochat.tensors import Tensor, load_tensors, save_tensors
from nanochat.weights import Dense, Spec, Stored, Weights, map_leaves, named_leaves

__all__ = ["Array", "Packing", "load_folder", "write_folder"]

Array = NDArray[np.generic]

_CLASSES = {
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
}
# What stands before the names of tensors, of an architecture that may read pictures, too.
_PREFIXES = {"qwen3_5": TEXT_PART}
# Before the names of the leaves that say how inputs are rotated, of which every rotated module has one.
_SIGNS = "signs."
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How a runtime stores leaves: as tensors of a module, each a part of them, with a row for each of the leaf's.

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
        Name, type and shape of those tensors, by the name of a leaf and a spec with the rows of all that lie in them;
        ``weight`` is the tensor that is the place of a leaf.
    """

    runtime: Runtime
    framework: str
    stack: str = ""
    fields: Callable[[Mapping[str, Spec]], dict[str, object]]
    pack: Callable[[str, Stored], dict[str, Array]]
    unpack: Callable[[str, Spec, Mapping[str, Array]], Stored]
    parts: Callable[[str, Spec], Iterable[tuple[str, str, tuple[int, ...]]]]

    def places(self, config: ModelConfig) -> dict[str, Place]:
        """Where each leaf lies."""
        prefix = _PREFIXES.get(stock_architecture(config, self.runtime), "")
        return {
            name: dataclasses.replace(place, tensor=prefix + place.tensor)
            for name, place in folder_places(config, stack=self.stack).items()
        }


def write_folder(folder: Path, bundle: Bundle, packing: Packing, progress: Progress | None) -> str:
    """Write a model for a stock runtime, in place of that which the folder holds, and return its architecture."""
    texts = _texts(bundle, packing.runtime)
    require_complete(bundle.config, bundle.weights)
    bundle = without_ahead(bundle)
    config, leaves = bundle.config, dict(named_leaves(bundle.weights))
    specs, places = dict(named_leaves(shapes(config))), packing.places(config)
    members = _members(places)
    tensors: dict[str, Array] = {}
    for done, (tensor, inside) in enumerate(members.items(), 1):
        packed = {name: packing.pack(name, leaves[name]) for name in inside}
        for part in packed[next(iter(inside))]:
            tensors[_key(tensor, part)] = _joined(
                [(packed[name][part], place) for name, place in inside.items()]
            )
        if progress is not None:
            progress(done, len(members))
    held = {_module(tensor): specs[next(iter(inside))] for tensor, inside in members.items()}
    texts["config.json"] |= packing.fields(held)
    if config.rotation_block:
        modules = rotated_modules(config, places)
        texts["config.json"] |= rotated_fields(modules)
        tensors |= signs_of_modules(_signs(leaves), config, places, modules)
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
    config = dataclasses.replace(config, num_ahead=0, ahead_kind="independent")
    stock_architecture(config, packing.runtime)
    specs = shapes(config)
    spec_of = dict(named_leaves(specs))
    tensors = load_tensors(folder)
    for tensor in tensors.values():
        tensor.verify()
    places = packing.places(config)
    whole = tensor_shapes(places, spec_of)
    arrays: dict[str, dict[str, Array]] = {name: {} for name in places}
    for key, members in _members(places).items():
        first = next(iter(members))
        spec = dataclasses.replace(spec_of[first], shape=whole[key])
        for part, dtype, shape in packing.parts(first, spec):
            array = _take(folder, tensors, _key(key, part), dtype, shape)
            for name, place in members.items():
                rows = row_slice(place.rows) if place.expert is None else place.expert
                arrays[name][part] = array[rows]
    signs: dict[str, NDArray[np.float32]] = {}
    if config.rotation_block:
        modules = rotated_modules(config, places)
        signs = signs_of_roles(FolderTensors(folder, tensors), config, places, modules)
        for key in signs_of_modules(signs, config, places, modules):
            del tensors[key]
    if tensors:
        raise FormatError(
            f"{folder}: {len(tensors)} tensors are no part of the model, the first is "
            f"{min(tensors)!r:.80}: the folder is another model's; fetch it again"
        )

    def unpack(name: str, spec: Spec) -> Stored:
        if name.startswith(_SIGNS):
            return Dense(values=signs[name.removeprefix(_SIGNS)])
        leaf = packing.unpack(name, spec, arrays[name])
        require_legal(name, leaf)
        return leaf

    return config, map_leaves(unpack, specs)


def _signs(leaves: Mapping[str, Stored]) -> dict[str, NDArray[np.float32]]:
    """The signs of each role."""
    return {
        name.removeprefix(_SIGNS): leaf.values
        for name, leaf in leaves.items()
        if name.startswith(_SIGNS) and isinstance(leaf, Dense)
    }


def _members(places: Mapping[str, Place]) -> dict[str, dict[str, Place]]:
    """The leaves of each tensor, and their places in it."""
    found: dict[str, dict[str, Place]] = {}
    for name, place in places.items():
        found.setdefault(place.tensor, {})[name] = place
    return found


def _module(tensor: str) -> str:
    return tensor.removesuffix(".weight")


def _key(tensor: str, part: str) -> str:
    """The name of what stands beside the weights of a module."""
    return tensor if part == "weight" else f"{_module(tensor)}.{part}"


def _joined(parts: Sequence[tuple[Array, Place]]) -> Array:
    """One tensor, of the same part of all leaves that lie in it."""
    arrays = [array for array, _ in parts]
    if parts[0][1].expert is not None:
        return np.stack(arrays)
    if len(parts) == 1:
        return arrays[0]
    whole = np.empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    for array, place in parts:
        whole[row_slice(place.rows)] = array
    return whole


def _texts(bundle: Bundle, runtime: Runtime) -> dict[str, dict[str, object]]:
    """``config.json`` and ``generation_config.json`` of a model that the runtime can run."""
    config = bundle.config
    architecture = stock_architecture(config, runtime)
    generation = {**default_generation(bundle.tokenizer), **bundle.generation}
    # Rotated models are no class of transformers.
    classes = [_CLASSES[architecture]] if architecture in _CLASSES else []
    named = {"architectures": classes, "model_type": architecture}
    ids = {key: generation[key] for key in _IDS if key in generation}
    fields: dict[str, object] = {
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
        "tie_word_embeddings": config.tie_embeddings,
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
    if "delta" in config.layer_pattern:
        text = {"model_type": text_type(named), **fields, **hybrid_fields(config)}
        fields = {"text_config": text, "tie_word_embeddings": config.tie_embeddings}
    else:
        fields["rope_theta"] = ntk_theta(config)
    return {"config.json": named | fields | ids, "generation_config.json": generation}


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
