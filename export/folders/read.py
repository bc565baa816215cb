"""This file holds the reader of other people's folders: a configuration, and leaves as their tensors are.

What a leaf's numbers are, a packing says (`nanochat.export.folders.packing`); names, shapes, norms and tables are the
same in all.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.blocks.checks import say_many_zeros
from nanochat.blocks.plain import plain
from nanochat.checkpoint import require_legal
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError
from nanochat.export.folders.configuration import read_configuration, text_type
from nanochat.export.folders.names import folder_places
from nanochat.export.folders.packing import Packing
from nanochat.export.folders.rotations import ROTATED, read_rotated, signs_of_roles
from nanochat.export.folders.tensors import FLOATS, open_folder
from nanochat.export.gains import is_above_one, say_unusual_gains
from nanochat.export.places import Place, require_sizes, row_slice, tensor_shapes
from nanochat.shapes import shapes
from nanochat.weights import (
    DENSE_DTYPES,
    Dense,
    Spec,
    Stored,
    Ternary,
    TernaryBlocks,
    Weights,
    map_leaves,
    named_leaves,
)

__all__ = ["load_foreign_folder", "read_foreign_config"]

_LOGGER = logging.getLogger(__name__)

_TABLE, _HEAD = "model.embed_tokens", "lm_head"
# Linears that may be ternary or not.
_GATES = (".mixer.beta", ".mixer.decay")
# What is not finite is refused by name; NumPy says nothing besides of signalling NaNs, nor of what is too large.
_QUIET = np.errstate(invalid="ignore", over="ignore")
# Rows of a matrix whose zeros are counted.
_SAMPLED_ROWS = 64


@_QUIET
def load_foreign_folder(
    directory: Path, fields: Mapping[str, object], packing: type[Packing]
) -> tuple[ModelConfig, Weights[Stored]]:
    """The configuration and weights of a folder, as ours; `fields` is the content of its ``config.json``.

    Leaves are views of the files where those have what they need; then nobody has read them, and what is wrong with
    their codes and scales, whoever lays them out finds.
    """
    reader = _Reader(directory, fields, packing)
    config = reader.config()
    return config, reader.weights(config)


@_QUIET
def read_foreign_config(
    directory: Path, fields: Mapping[str, object], packing: type[Packing]
) -> ModelConfig:
    """The configuration of a folder, as ours; see `load_foreign_folder`."""
    return _Reader(directory, fields, packing).config()


class _Reader:
    """Makes our leaves of a folder's tensors."""

    def __init__(
        self, directory: Path, fields: Mapping[str, object], packing: type[Packing]
    ) -> None:
        self._directory = directory
        kind = text_type(fields)
        with _of_the_configuration(directory):
            self._fields = read_configuration(fields)
            self._rotated = read_rotated(fields) if fields["model_type"] == ROTATED else None
            # The first, for what is wrong with it is said by another name afterwards.
            self._plain = self._without_blocks()
        self._has_delta = kind == "qwen3_5_text"
        self._tensors = open_folder(directory, has_other_parts=self._has_delta)
        with _of_the_configuration(directory):
            self._packing = packing(self._tensors, fields)
        self._take_rows()
        with _of_the_configuration(directory):
            require_sizes(self._plain, self._tensors.shapes)
        self._places = folder_places(self._plain)
        self._specs = dict(named_leaves(shapes(self._plain)))
        self._shapes = tensor_shapes(self._places, self._specs)
        self._check_names()
        self._ternary: dict[str, tuple[int, int]] = {}

    def config(self) -> ModelConfig:
        """The configuration."""
        self._choose_forms()
        found = dict(self._fields)
        if self._rotated is not None:
            self._rotated.require_all(self._ternary)
            found["rotation_block"] = self._rotated.block
        found |= self._packing.blocks(self._ternary)
        with _of_the_configuration(self._directory):
            return ModelConfig(**found)

    def weights(self, config: ModelConfig) -> Weights[Stored]:
        """The whole model, of that configuration."""
        signs = {}
        if self._rotated is not None:
            signs = signs_of_roles(self._tensors, config, self._places, self._rotated)
        added = self._added_to_gains()

        def leaf(name: str, spec: Spec) -> Stored:
            if name.startswith("signs."):
                return Dense(values=signs[name.removeprefix("signs.")])
            found = self._leaf(name, spec, added)
            if not isinstance(found, TernaryBlocks):
                require_legal(self._places[name].tensor, found)
            return found

        weights = map_leaves(leaf, shapes(config))
        for note in self._packing.notes():
            _LOGGER.warning("%s: %s", self._directory, note)
        self._tell(config, weights, added)
        return weights

    def _without_blocks(self) -> ModelConfig:
        """A configuration of which names and shapes are those of the whole one's weights."""
        return ModelConfig(
            **self._fields, table_format="dense", weight_block="row", activation_block="token"
        )

    def _take_rows(self) -> None:
        """The vocabulary is what the table has, whatever is said of it."""
        shape = self._tensors.described(f"{_TABLE}.weight").shape
        if not shape or shape[0] == self._fields["vocab_size"]:
            return
        _LOGGER.warning(
            "%s: vocab_size is %d in config.json, and the embedding has %d rows, which count",
            self._directory,
            self._fields["vocab_size"],
            shape[0],
        )
        self._fields["vocab_size"] = shape[0]
        self._plain = self._without_blocks()

    def _check_names(self) -> None:
        """Refuse what is missing, and tensors that have no place: left out, another model would be computed."""
        present = set(self._tensors.keys)
        missing = [key for key in self._shapes if key not in present]
        if missing:
            raise FormatError(
                f"{self._directory}: {len(missing)} weights are missing, the first is {missing[0]}: config.json is "
                "another model's, or a download is incomplete; fetch the model again"
            )
        linears = {
            place.tensor.removesuffix(".weight")
            for name, place in self._places.items()
            if self._specs[name].kind == "ternary"
            or name in ("embedding", "head")
            or name.endswith(_GATES)
        }
        parts = {*self._packing.companions, *(("signs",) if self._rotated else ())}
        known = {f"{module}.{part}" for module in linears for part in parts} | self._shapes.keys()
        others = {
            key
            # Older versions of transformers wrote what follows from the configuration.
            for key in present - known
            if not key.endswith("rotary_emb.inv_freq")
            # What is added to nothing.
            and not (key.removesuffix(".bias") in linears - {_TABLE} and self._tensors.is_zero(key))
        }
        if self._plain.tie_embeddings:
            head = {key for key in others if key.startswith(f"{_HEAD}.")}
            if all(self._is_twice(key) for key in head):
                others -= head
        if others:
            key = min(others)
            raise FormatError(
                f"{self._tensors.described(key).path}: {len(others)} tensors have no place in this model, the first "
                f"is {key!r:.80}: linears here have no biases and no norms inside, and a tied head is the embedding; "
                "pass a model without it"
            )

    def _is_twice(self, key: str) -> bool:
        """Whether a tensor of a tied head is that of the embedding."""
        other = key.replace(_HEAD, _TABLE, 1)
        return other in self._tensors and self._tensors.are_equal(key, other)

    def _choose_forms(self) -> None:
        """How tables and gates are kept, and so which matrices are ternary."""
        for name, place in self._places.items():
            if self._specs[name].kind == "ternary":
                self._add(place)
        self._fields["table_format"] = self._form([_TABLE])
        if not self._plain.tie_embeddings:
            form = self._form([_HEAD])
            self._fields["head_format"] = "table" if form == self._fields["table_format"] else form
        gates = [
            place.tensor.removesuffix(".weight")
            for name, place in self._places.items()
            if name.endswith(_GATES)
        ]
        if gates:
            self._fields["delta_gates"] = self._form(gates)

    def _form(self, modules: list[str]) -> str:
        """How some matrices, which may be ternary, are kept; ternary if all are."""
        keys = [f"{module}.weight" for module in modules]
        if all(self._packing.is_ternary(module, self._matrix(module)) for module in modules):
            for key in keys:
                self._add(Place(tensor=key))
            return "ternary"
        types = {self._tensors.described(key).dtype for key in keys}
        return FLOATS.get(min(types), "dense") if len(types) == 1 else "dense"

    def _add(self, place: Place) -> None:
        module = place.tensor.removesuffix(".weight")
        self._ternary[module] = self._matrix(module)

    def _matrix(self, module: str) -> tuple[int, int]:
        rows, columns = self._shapes[f"{module}.weight"]
        return rows, columns

    def _leaf(self, name: str, spec: Spec, added: float) -> Stored:
        place = self._places[name]
        module, shape = place.tensor.removesuffix(".weight"), self._shapes[place.tensor]
        if spec.kind == "ternary":
            return self._packing.leaf(module, self._matrix(module), spec, place.rows)
        dtype = DENSE_DTYPES[spec.dtype]
        values: NDArray[Any] = self._tensors.take(place.tensor, shape, *FLOATS)[
            row_slice(place.rows)
        ]
        values = values.astype(dtype, copy=False)
        if added and is_above_one(name):
            values = values + np.float32(added)
        return Dense(values=values)

    def _added_to_gains(self) -> float:
        """What gains are stored without: in MLX's order of a convolution nothing, in transformers' 1."""
        if not self._has_delta:
            return 0.0
        taps = [
            self._tensors.described(key).shape[-1:]
            for key in self._shapes
            if key.endswith("conv1d.weight")
        ]
        if taps:
            return float(any(last != (1,) for last in taps))
        return float(not self._packing.is_mlx)

    def _tell(self, config: ModelConfig, weights: Weights[Stored], added: float) -> None:
        """What looks wrong, and what is read otherwise than one may think."""
        if self._has_delta:
            program = "transformers" if added else "MLX"
            say_unusual_gains(str(self._directory), weights, program=program)
        if config.activation_block != "token":
            _LOGGER.info(
                "%s: activations are rounded to 8 bits in blocks of %s columns, where the programs that the folder "
                "was made for round none",
                self._directory,
                config.activation_block,
            )
        shares = {
            self._places[name].tensor: _sampled_zeros(leaf)
            for name, leaf in named_leaves(weights)
            if isinstance(leaf, Ternary | TernaryBlocks)
        }
        say_many_zeros(str(self._directory), shares)


def _sampled_zeros(leaf: Ternary | TernaryBlocks) -> float:
    """The share of zeros in the first rows."""
    if isinstance(leaf, TernaryBlocks):
        found = plain(replace(leaf, rows=leaf.rows[:_SAMPLED_ROWS]))
        assert isinstance(found, Ternary)
        leaf = found
    codes = ternary.unpack(leaf.packed[:_SAMPLED_ROWS], columns=leaf.columns)
    return float((codes == 0).mean())


@contextmanager
def _of_the_configuration(directory: Path) -> Iterator[None]:
    """Say which file an error is in."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{directory / 'config.json'}: {error}") from error
