"""This file holds the tensors of other people's folders, under the names that a model of texts alone has."""

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.errors import FormatError, ShapeError
from nanochat.tensors import Tensor, load_tensors

__all__ = ["FLOATS", "TEXT_PART", "FolderTensors", "open_folder"]

_LOGGER = logging.getLogger(__name__)

# Types of numbers, and what a leaf of them is here.
FLOATS: Mapping[str, str] = {"F32": "dense", "F16": "float16", "BF16": "bfloat16"}
# Before the names of the part that reads and writes text, in models of MLX that may have others.
TEXT_PART = "language_model."
# The same, and that of transformers; the longest first.
_PREFIXES = {f"model.{TEXT_PART}": "model.", TEXT_PART: ""}
# What no text needs: how pictures are read, and blocks that predict further tokens.
_LEFT_OUT = ("model.visual.", "visual.", "vision_tower.", "model.mtp.", "mtp.")


class FolderTensors:
    """Tensors by name: mapped, not read; those that are taken have the type and shape that was asked for."""

    def __init__(self, directory: Path, tensors: Mapping[str, Tensor]) -> None:
        self.directory = directory
        self._tensors = tensors

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    @property
    def keys(self) -> Iterable[str]:
        """The names of all."""
        return self._tensors.keys()

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of all."""
        return [tensor.shape for tensor in self._tensors.values()]

    def described(self, key: str) -> Tensor:
        """A tensor, of which type and shape may be looked at.

        Raises
        ------
        FormatError
            If there is none of that name.
        """
        if key not in self._tensors:
            raise FormatError(
                f"{self.directory}: {key} is missing: config.json is another model's, or a download is incomplete; "
                "fetch the model again"
            )
        return self._tensors[key]

    def take(self, key: str, shape: tuple[int, ...], *dtypes: str) -> NDArray[np.generic]:
        """The numbers of a tensor of one of these types, a view of its file."""
        tensor = self.described(key)
        if tensor.dtype not in dtypes:
            raise FormatError(
                f"{tensor.path}: {key} is of type {tensor.dtype}, must be {' or '.join(dtypes)} as config.json "
                "describes the linears; convert it, or fetch the model again"
            )
        if tensor.shape != shape and not _is_convolution(key, tensor.shape, shape):
            raise ShapeError(
                f"{tensor.path}: {key} has shape {list(tensor.shape)} but config.json asks for {list(shape)}: one of "
                "the two files is another model's; fetch both again"
            )
        return tensor.array().reshape(shape)

    def floats(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The numbers of a tensor, all of them finite."""
        values = self.take(key, shape, *FLOATS).astype(np.float32, copy=False)
        ternary.require_finite(values, key)
        return values

    def is_zero(self, key: str) -> bool:
        """Whether all numbers of a tensor are."""
        return not self._tensors[key].array().astype(np.float32).any()

    def are_equal(self, first: str, second: str) -> bool:
        """Whether two tensors hold the same."""
        one, other = self._tensors[first], self._tensors[second]
        same = (one.dtype, one.shape) == (other.dtype, other.shape)
        return same and np.array_equal(one.data, other.data)


def open_folder(directory: Path, *, has_other_parts: bool) -> FolderTensors:
    """The tensors of a folder; of a model that `has_other_parts` than that for texts, only those for texts.

    Raises
    ------
    FormatError
        If two tensors have one name when the part that they belong to is taken off.
    """
    tensors = load_tensors(directory)
    if not has_other_parts:
        return FolderTensors(directory, tensors)
    found: dict[str, Tensor] = {}
    left: list[str] = []
    for key, tensor in tensors.items():
        name = _name_in_text(key)
        if name.startswith(_LEFT_OUT):
            left.append(key)
            continue
        if name in found:
            raise FormatError(
                f"{directory}: {key!r:.80} and {found[name].key!r:.80} are one tensor by two names: the folder holds "
                "two models; fetch it again"
            )
        found[name] = tensor
    if left:
        _LOGGER.warning(
            "%s: %d tensors that read pictures or predict further tokens are left out, the first is %s",
            directory,
            len(left),
            min(left),
        )
    return FolderTensors(directory, found)


def _name_in_text(key: str) -> str:
    for prefix, instead in _PREFIXES.items():
        if key.startswith(prefix):
            return instead + key.removeprefix(prefix)
    return key


def _is_convolution(key: str, found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether channels and taps are those that were asked for, with the one input of each channel anywhere."""
    return (
        key.endswith("conv1d.weight")
        and len(found) == 3
        and 1 in found[1:]
        and (found[0], math.prod(found[1:])) == shape
    )
