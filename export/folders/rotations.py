"""This file holds what rotated packs of MLX say of their matrices, and the refusal of what would be another model.

What is written is what is read here.

``config.json`` lists the rotated matrices, and each has the signs of its inputs beside it.

References
----------
.. [1] github.com/ml-explore/mlx-lm, mlx_lm/models/prism_hadamard_qwen35.py, version 0.32.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError
from nanochat.export.folders.fields import Fields
from nanochat.export.folders.tensors import FolderTensors
from nanochat.export.places import Place
from nanochat.shapes import layer_kinds, shapes
from nanochat.weights import named_leaves

__all__ = [
    "GROUP",
    "ROTATED",
    "RotatedModules",
    "read_rotated",
    "role_of",
    "rotated_fields",
    "rotated_modules",
    "signs_of_modules",
    "signs_of_roles",
]

# The type of model.
ROTATED = "prism_hadamard_qwen35"
# By the version; the same tensors under other names.
_TEXT, _WITH_PICTURES = 1, 2
_NAMESPACES = {_TEXT: "mlx-lm-text", _WITH_PICTURES: "mlx-vlm-qwen3_5"}
# How heads of Gated DeltaNet stand: those of one key head follow each other, as here.
_LAYOUT = "grouped"
# Columns that share a scale.
GROUP = 128
_QUANTIZATION: Mapping[str, object] = {"bits": 2, "group_size": GROUP, "mode": "affine"}
_EMBEDDING, _DTYPE = "model.embed_tokens", "float16"
_ADVICE = "fetch it again, or another one of the same model"


@dataclass(frozen=True, kw_only=True)
class RotatedModules:
    """The columns of a block that is rotated, and the names of the modules whose inputs are."""

    block: int
    modules: frozenset[str]

    def require_all(self, ternary: Mapping[str, object]) -> None:
        """Refuse a model of which not exactly the ternary matrices, by their modules, are rotated."""
        missing, others = (
            sorted(ternary.keys() - self.modules),
            sorted(self.modules - ternary.keys()),
        )
        if missing:
            raise FormatError(
                f"{missing[0]} is ternary and not in the list of modules, as {len(missing)} of {len(ternary)}: this "
                f"package rotates all or none; {_ADVICE}"
            )
        if others:
            raise FormatError(
                f"{others[0]} is in the list of modules and no ternary matrix of the model: this package rotates "
                f"ternary matrices only; {_ADVICE}"
            )


def read_rotated(fields: Mapping[str, object]) -> RotatedModules:
    """What the ``config.json`` of a rotated pack says.

    Raises
    ------
    ConfigError
        If it asks for something else than `nanochat.ops.Ops.rotate`.
    """
    whole = Fields(fields)
    version, namespace = whole.get("schema_version"), whole.get("tensor_namespace")
    if type(version) is not int or version not in _NAMESPACES:
        raise whole.wrong("schema_version", "1 or 2; upgrade nanochat-ternary")
    if namespace != _NAMESPACES[version]:
        raise whole.wrong("tensor_namespace", f"{_NAMESPACES[version]!r} in schema {version}")
    if whole.get("gdn_activation_layout") != _LAYOUT:
        raise whole.wrong("gdn_activation_layout", repr(_LAYOUT))
    if whole.get("quantization") != _QUANTIZATION:
        raise whole.wrong("quantization", f"{dict(_QUANTIZATION)!r}")
    records = whole.get("modules")
    if not isinstance(records, list) or not records:
        raise whole.wrong("modules", "a list of the rotated modules")
    blocks: dict[str, int] = {}
    for record in records:
        path, block = _record(record)
        if path in blocks:
            raise ConfigError(f"modules has {path!r:.80} twice: {_ADVICE}")
        blocks[path] = block
    first = records[0]["path"]
    for path, block in blocks.items():
        if block != blocks[first]:
            raise ConfigError(
                f"modules has block {block} for {path!r:.80}, and {blocks[first]} for {first!r:.80}: this package "
                f"rotates all matrices in blocks of one size; {_ADVICE}"
            )
    return RotatedModules(block=blocks[first], modules=frozenset(blocks))


def _record(record: object) -> tuple[str, int]:
    match record:
        case {
            "path": str(path),
            "embedding": bool(looked_up),
            "dtype": str(dtype),
            "block": int(block),
        }:
            if looked_up != (path == _EMBEDDING) or dtype != _DTYPE:
                raise ConfigError(
                    f"modules has {record!r:.200}: only {_EMBEDDING} is an embedding, and the dtype must be "
                    f"{_DTYPE!r}; {_ADVICE}"
                )
            if isinstance(block, bool) or block < 4 or block & (block - 1):
                raise ConfigError(
                    f"modules has block {block} for {path!r:.80}: must be a power of two from 4 on; {_ADVICE}"
                )
            return path, block
    raise ConfigError(
        f"modules has {record!r:.200}: must be an object of path, embedding, dtype and block; {_ADVICE}"
    )


def rotated_fields(modules: RotatedModules) -> dict[str, object]:
    """What `read_rotated` reads, of a pack for texts alone."""
    return {
        "schema_version": _TEXT,
        "tensor_namespace": _NAMESPACES[_TEXT],
        "gdn_activation_layout": _LAYOUT,
        "quantization": dict(_QUANTIZATION),
        "modules": [
            {"path": path, "embedding": path == _EMBEDDING, "dtype": _DTYPE, "block": modules.block}
            for path in sorted(modules.modules)
        ],
    }


def rotated_modules(config: ModelConfig, places: Mapping[str, Place]) -> RotatedModules:
    """The ternary matrices of a rotated model whose leaves lie in these places."""
    specs = dict(named_leaves(shapes(config)))
    ternary = {_module(place) for name, place in places.items() if specs[name].kind == "ternary"}
    return RotatedModules(block=config.rotation_block, modules=frozenset(ternary))


def signs_of_modules(
    signs: Mapping[str, NDArray[np.float32]],
    config: ModelConfig,
    places: Mapping[str, Place],
    modules: RotatedModules,
) -> dict[str, NDArray[np.float32]]:
    """The tensors of which `signs_of_roles` makes these.

    Raises
    ------
    NumericError
        If signs are no 1 and -1.
    """
    for role, values in signs.items():
        bad = _no_sign(values)
        if bad:
            raise NumericError(
                f"signs.{role} holds {bad}: signs of a pack are 1 and -1; write it for nanochat-ternary instead"
            )
    return {
        _key(_module(place)): signs[role_of(name, config)]
        for name, place in places.items()
        if _module(place) in modules.modules
    }


def _no_sign(values: NDArray[np.float32]) -> str:
    """The first number that is neither 1 nor -1, and where it is; empty if there is none."""
    bad = np.flatnonzero(np.abs(values) != 1)
    return f"{values[bad[0]]:g} at {int(bad[0])}" if bad.size else ""


def _module(place: Place) -> str:
    return place.tensor.removesuffix(".weight")


def _key(module: str) -> str:
    return f"{module}.signs"


def signs_of_roles(
    tensors: FolderTensors,
    config: ModelConfig,
    places: Mapping[str, Place],
    modules: RotatedModules,
) -> dict[str, NDArray[np.float32]]:
    """The signs of each role, such as "stream", of a model whose leaves lie in these places.

    Raises
    ------
    FormatError
        If signs are no 1 and -1, or two matrices of a role have others.
    """
    widths = {
        "stream": config.width,
        "attention": config.num_heads * config.head_dim,
        "delta": config.delta_heads * config.delta_value_dim,
        "network": config.ffn_width,
    }
    found: dict[str, NDArray[np.float32]] = {}
    whose: dict[str, str] = {}
    for name, place in places.items():
        module = _module(place)
        if module not in modules.modules:
            continue
        role, key = role_of(name, config), _key(module)
        signs = tensors.floats(key, (widths[role],))
        bad = _no_sign(signs)
        if bad:
            raise FormatError(f"{key} holds {bad}: signs are 1 and -1; {_ADVICE}")
        if not np.array_equal(found.setdefault(role, signs), signs):
            raise FormatError(
                f"{key} are other signs than those of {whose[role]}: in this package all matrices that read "
                f"{_READ[role]} have the same; {_ADVICE}"
            )
        whose.setdefault(role, key)
    return found


_READ = {
    "stream": "the stream of a layer's inputs",
    "attention": "what attention gives",
    "delta": "what a delta rule gives",
    "network": "hidden features of a network",
}


def role_of(name: str, config: ModelConfig) -> str:
    """The role of a matrix's input, as in `nanochat.weights.Signs`, by the name of its leaf.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> role_of("layers.0.mixer.o", preset("tiny")), role_of("embedding", preset("tiny"))
    ('attention', 'stream')
    """
    match name.split("."):
        case ["layers", layer, "mixer", "o"]:
            return layer_kinds(config)[int(layer)]
        case ["layers", _, "network", "down"]:
            return "network"
    return "stream"
