"""This file holds the reader of other people's GGUF files: a configuration, and leaves that are views of the file."""

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.blocks.checks import say_many_zeros
from nanochat.checkpoint import require_legal
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError, ShapeError
from nanochat.export.gains import say_unusual_gains
from nanochat.export.gguf.container import GgufFile, GgufTensor
from nanochat.export.gguf.foreign.hyperparameters import (
    ARCHITECTURES,
    ROPE_FACTORS,
    read_hyperparameters,
)
from nanochat.export.gguf.foreign.matrices import (
    FLOATS,
    dense_leaf,
    rounding_error,
    sampled_zeros,
    table_leaf,
    ternary_leaf,
    widest_block,
)
from nanochat.export.gguf.foreign.rotations import PREFIX, read_rotations
from nanochat.export.gguf.places import places
from nanochat.export.gguf.types import I2_S, PACKINGS, Q2_0, TQ1_0, TQ2_0
from nanochat.export.gguf.vocabulary import read_vocabulary
from nanochat.export.places import Place, require_sizes, tensor_shapes
from nanochat.shapes import shapes
from nanochat.text.codec import TextCodec
from nanochat.weights import Dense, Spec, Stored, TernaryBlocks, Weights, map_leaves, named_leaves

__all__ = ["leaves_of", "load_foreign_gguf"]

_LOGGER = logging.getLogger(__name__)

_TABLES = ("embedding", "head")
# Columns of a block in which llama.cpp rounds what such a matrix multiplies.
_ROUNDED = {Q2_0: 32, TQ1_0: 256, TQ2_0: 256}


def load_foreign_gguf(path: Path, file: GgufFile) -> tuple[ModelConfig, Weights[Stored], TextCodec]:
    """A model of a file that another program wrote; `path` is for messages.

    Matrices are views of the file, which nobody has read: what is wrong with their codes and scales, whoever lays them
    out finds.
    """
    try:
        reader = _Reader(path, file)
        config, weights = reader.model()
        return config, weights, read_vocabulary(file.metadata, rows=config.vocab_size)
    except (ConfigError, FormatError, ShapeError, NumericError) as error:
        raise type(error)(f"{path}: {error}") from error


def leaves_of(path: Path, file: GgufFile, config: ModelConfig) -> Weights[Stored]:
    """The leaves of a file of one of these architectures whose configuration is known."""
    return _Reader(path, file).leaves(config)


class _Reader:
    """Makes our leaves of a file's tensors."""

    def __init__(self, path: Path, file: GgufFile) -> None:
        architecture = file.metadata.get("general.architecture")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            raise FormatError(
                f"architecture is {architecture!r:.80}: of other people's GGUF files this package reads those of "
                f"{', '.join(ARCHITECTURES)}; pass one of these"
            )
        self._path = path
        self._architecture = architecture
        self._tensors = file.tensors
        self._fields = read_hyperparameters(architecture, file)
        self._rotations = read_rotations(file.metadata, list(file.tensors))
        if self._rotations is not None:
            self._fields["rotation_block"] = self._rotations.block
        # The blocks are not known before the matrices are, whose names and shapes do not depend on them.
        self._plain = ModelConfig(
            **self._fields | {"rotation_block": 0}, weight_block="row", activation_block="token"
        )
        require_sizes(self._plain, [tensor.shape for tensor in file.tensors.values()])
        self._specs = dict(named_leaves(shapes(self._plain)))
        grouped = self._rotations is not None and self._rotations.grouped
        self._places = places(self._plain, architecture, grouped=grouped)
        if self._rotations is not None:
            self._require_columns_in_order()

    def model(self) -> tuple[ModelConfig, Weights[Stored]]:
        """Configuration and weights."""
        ahead = self._left_out()
        self._check_names(ahead)
        self._check_shapes()
        matrices = self._matrices()
        self._check_rotated(matrices)
        config = ModelConfig(**self._fields, **_blocks(matrices))
        weights = self.leaves(config)
        self._tell(config, weights, matrices, ahead)
        return config, weights

    def leaves(self, config: ModelConfig) -> Weights[Stored]:
        """The weights of a configuration that fits the tensors; those that are no matrices have been checked."""
        weights = map_leaves(self._leaf, shapes(config))
        for name, leaf in named_leaves(weights):
            if not isinstance(leaf, TernaryBlocks):
                require_legal(name, leaf)
        return weights

    def _require_columns_in_order(self) -> None:
        """Refuse columns of rotated matrices that are in another order of heads: a rotation mixes those of a block."""
        for place in self._places.values():
            if place.heads is not None and np.any(np.diff(place.heads) != 1):
                raise FormatError(
                    f"{place.tensor} is rotated in an order of value heads that only changing it at every token would "
                    f"undo, as {PREFIX}gdn_v_grouped is not true: pass a file in which it is, such as the published "
                    "ones"
                )

    def _left_out(self) -> set[str]:
        """Tensors of blocks after the model's own, which predict further tokens."""
        own = range(self._plain.num_layers)
        return {
            name
            for name in self._tensors
            if name.startswith("blk.")
            and (number := name.split(".")[1]).isdecimal()
            and int(number) not in own
        }

    def _check_names(self, ahead: set[str]) -> None:
        needed = {place.tensor for place in self._places.values()}
        missing = sorted(needed - self._tensors.keys())
        if missing:
            raise FormatError(
                f"{len(missing)} tensors are missing, the first is {missing[0]}: the metadata are another model's, or "
                "the file is one of several; fetch it again, or join its parts"
            )
        linears = {
            place.tensor
            for name, place in self._places.items()
            if self._specs[name].kind == "ternary"
        }
        factors = {_companion(name) for name in linears} | set(ROPE_FACTORS)
        others = self._tensors.keys() - needed - factors - ahead
        if others:
            raise FormatError(
                f"{len(others)} tensors have no place in this model, the first is {min(others)!r:.80}: linears here "
                "have no biases; pass a model without it"
            )

    def _check_shapes(self) -> None:
        """Refuse tensors that have not the rows and columns of their leaves."""
        for tensor, shape in tensor_shapes(self._places, self._specs).items():
            found = self._tensors[tensor].shape
            if _without_ones(found) != _without_ones(shape):
                raise ShapeError(
                    f"{tensor} has shape {list(found)} but the metadata ask for {list(shape)}: fetch the file again"
                )

    def _matrices(self) -> dict[str, GgufTensor]:
        """The tensors of ternary matrices, by name; what has another type is refused."""
        found: dict[str, GgufTensor] = {}
        for name, place in self._places.items():
            if self._specs[name].kind != "ternary":
                continue
            tensor = self._tensors[place.tensor]
            if tensor.kind not in PACKINGS and tensor.kind not in FLOATS:
                types = ", ".join(kind.name for kind in PACKINGS)
                raise FormatError(
                    f"{place.tensor} is of type {tensor.kind.name}, must be one of {types}, or of numbers that are "
                    "ternary: in this package every linear is; pass a ternary model"
                )
            found[place.tensor] = tensor
        return found

    def _check_rotated(self, matrices: Mapping[str, GgufTensor]) -> None:
        """Every ternary matrix is rotated, or none is: else it would be another model."""
        rotated = frozenset[str]() if self._rotations is None else self._rotations.names
        if self._rotations is None:
            return
        missing, others = sorted(matrices.keys() - rotated), sorted(rotated - matrices.keys())
        # A head that is the embedding is a matrix of a rotated input, too, and named or not.
        if missing:
            raise FormatError(
                f"{missing[0]} is ternary and not in the list of rotated matrices, as {len(missing)} of "
                f"{len(matrices)}: this package rotates all or none; fetch the file again, or another one of the model"
            )
        if others:
            raise FormatError(
                f"{others[0]} is in the list of rotated matrices and not ternary: this package rotates ternary "
                "matrices only; fetch the file again, or another one of the model"
            )

    def _leaf(self, name: str, spec: Spec) -> Stored:
        if name.startswith("signs."):
            assert self._rotations is not None
            return Dense(values=self._rotations.signs_of(spec.shape[0]))
        place = self._places[name]
        tensor = self._tensors[place.tensor]
        if spec.kind == "ternary":
            factor = self._factor(place)
            # What is wrong with a matrix is found when the file is no longer spoken of.
            where = f"{self._path}: {place.tensor}"
            return ternary_leaf(place.tensor, tensor, place, spec, factor=factor, where=where)
        if name in _TABLES:
            return table_leaf(place.tensor, tensor, spec)
        leaf = dense_leaf(place.tensor, tensor, place, spec)
        return _log_rate(place.tensor, leaf) if name.endswith(".log_rate") else leaf

    def _factor(self, place: Place) -> float:
        """What all scales of a matrix are multiplied with."""
        name = _companion(place.tensor)
        if name not in self._tensors:
            return 1.0
        tensor, count = self._tensors[name], 1
        if place.expert is not None:
            count = self._tensors[place.tensor].shape[0]
        if _without_ones(tensor.shape) != _without_ones((count,)):
            raise ShapeError(
                f"{name} has shape {list(tensor.shape)}, must be [{count}]: fetch the file again"
            )
        values = dense_leaf(
            name,
            tensor,
            Place(tensor=name),
            Spec(kind="dense", shape=(count,), initial=""),
        ).values
        return float(values[place.expert or 0])

    def _tell(
        self,
        config: ModelConfig,
        weights: Weights[Stored],
        matrices: Mapping[str, GgufTensor],
        ahead: set[str],
    ) -> None:
        """What is read otherwise than one may think."""
        if self._architecture == "qwen35":
            say_unusual_gains(str(self._path), weights, program="llama.cpp")
        kinds = {tensor.kind for tensor in matrices.values()}
        theirs = sorted({_ROUNDED[kind] for kind in kinds if kind in _ROUNDED})
        block = config.activation_block
        if theirs:
            _LOGGER.info(
                "%s: activations are rounded in blocks of %s, where llama.cpp rounds in blocks of %s",
                self._path,
                "a token" if block == "token" else f"{block} columns",
                " and ".join(map(str, theirs)),
            )
        if I2_S in kinds:
            _LOGGER.info(
                "%s: matrices in I2_S are read as bitnet.cpp writes them on x86, 128 columns in 32 bytes; it has other "
                "layouts for other processors",
                self._path,
            )
        if ahead:
            _LOGGER.warning(
                "%s: %d tensors of blocks that predict further tokens are left out, the first is %s",
                self._path,
                len(ahead),
                min(ahead),
            )
        errors = {
            name: rounding_error(self._tensors[place.tensor], self._factor(place))
            for name, place in self._places.items()
            if place.tensor in matrices
        }
        name = max(errors, key=lambda name: errors[name])
        tensor = self._places[name].tensor
        if errors[name]:
            _LOGGER.warning(
                "%s: scales are rounded to float16; the largest relative error found is %.1e, by %s",
                self._path,
                errors[name],
                factor if (factor := _companion(tensor)) in self._tensors else tensor,
            )
        packed = {name: tensor for name, tensor in matrices.items() if tensor.kind in PACKINGS}
        shares = {name: sampled_zeros(name, tensor) for name, tensor in packed.items()}
        say_many_zeros(str(self._path), shares)


def _blocks(matrices: Mapping[str, GgufTensor]) -> dict[str, Any]:
    """Blocks that hold every scale, as near to llama.cpp's as there are."""
    kinds = {tensor.kind for tensor in matrices.values()}
    if kinds == {I2_S}:
        return {"weight_block": "row", "activation_block": "token"}
    block = widest_block(matrices)
    return {"weight_block": block, "activation_block": block}


def _log_rate(name: str, leaf: Dense) -> Dense:
    """The logarithm of the rates that are stored with a minus."""
    bad = ~(leaf.values < 0)
    if bad.any():
        raise NumericError(
            f"{name} holds {leaf.values[bad][0]:g}: rates of decay are stored as negative numbers; fetch the file again"
        )
    return Dense(values=np.log(-leaf.values))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as llama.cpp compares it: the outer dimensions of 1 may be written or not."""
    return tuple(itertools.dropwhile(lambda size: size == 1, shape))


def _companion(name: str) -> str:
    """Name of the tensor with a factor for all of a linear's scales."""
    return f"{name.removesuffix('.weight')}.scale"
