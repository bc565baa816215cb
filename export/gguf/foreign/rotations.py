"""This file holds what GGUF files say of rotated inputs, and the refusal of what would be another model.

All keys begin with ``prism.hadamard.``; a file that has one has the complete set.

References
----------
.. [1] github.com/PrismML-Eng/llama.cpp, branch prism, src/llama-model.cpp: the keys and their rules.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import FormatError
from nanochat.export.gguf.container import MetadataValue

__all__ = ["PREFIX", "Rotations", "read_rotations"]

_LOGGER = logging.getLogger(__name__)

PREFIX = "prism.hadamard."
_GROUPED, _TIED = "gdn_v_grouped", "tied_output"
_FIXED: Mapping[str, str] = {
    "transform": "normalized-sylvester-walsh-hadamard",
    "axis": "input-last-dimension",
}
_KNOWN = {
    *_FIXED,
    _GROUPED,
    _TIED,
    "version",
    "block_size",
    "sign_mode",
    "sign_widths",
    "sign_values",
    "weight_names",
    "inverse_weight_names",
}
_LOOKED_UP = "token_embd.weight"
_HEAD = "output.weight"
_ADVICE = "fetch the file again, or another one of the same model"


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotations:
    """How a file's matrices are rotated: columns of a block, signs by width, and the names of the matrices.

    Widths whose signs are all 1 have None: no matrix need have as many columns as a file says.
    `grouped` says in which order the columns of ``ssm_out`` are; see `nanochat.export.gguf.places`.
    """

    block: int
    signs: Mapping[int, NDArray[np.float32] | None]
    names: frozenset[str]
    grouped: bool

    def signs_of(self, width: int) -> NDArray[np.float32]:
        """The signs of an input of so many features."""
        if width not in self.signs:
            raise FormatError(
                f"{PREFIX}sign_widths has no {width}, and matrices have so many columns: {_ADVICE}"
            )
        signs = self.signs[width]
        return np.ones(width, np.float32) if signs is None else signs


def read_rotations(
    metadata: Mapping[str, MetadataValue], tensors: Sequence[str]
) -> Rotations | None:
    """What the metadata of a file with such tensors say; None if they have no such key.

    Raises
    ------
    FormatError
        If a key is missing, or has a value that asks for something else than `nanochat.ops.Ops.rotate`.
    """
    keys = {
        key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)
    }
    if not keys:
        return None
    reader = _Keys(keys)
    tied = _HEAD not in tensors
    version = reader.whole("version")
    if version not in (1, 2):
        raise reader.wrong("version", "1 or 2; upgrade nanochat-ternary")
    said = reader.truth(_TIED)
    if (said and not tied) or (version == 2 and not said):
        raise FormatError(
            f"{PREFIX}{_TIED} is {said}, with{'out' if tied else ''} a tensor {_HEAD}: where the embedding is the "
            f"head, as version 2 has it, it is true and there is none; {_ADVICE}"
        )
    others = sorted(keys.keys() - _KNOWN)
    if others:
        _LOGGER.warning(
            "%s%s is not known here, and %d more: what it asks for is not done; upgrade nanochat-ternary, or compare "
            "what the model writes with the program it was made for",
            PREFIX,
            others[0],
            len(others) - 1,
        )
    for key, only in _FIXED.items():
        if keys.get(key) != only:
            raise reader.wrong(key, repr(only))
    block = reader.whole("block_size")
    if block < 4 or block & (block - 1):
        raise reader.wrong("block_size", "a power of two from 4 on")
    names, inverse = reader.texts("weight_names"), reader.texts("inverse_weight_names", [])
    for name in (*names, *inverse):
        if name not in tensors:
            raise FormatError(
                f"{PREFIX}weight_names has {name!r:.80}, which is no tensor: {_ADVICE}"
            )
    both = set(names) & set(inverse)
    if both or not set(inverse) <= {_LOOKED_UP}:
        bad = min(both or set(inverse) - {_LOOKED_UP})
        raise FormatError(
            f"{PREFIX}inverse_weight_names has {bad!r:.80}: only {_LOOKED_UP} is looked up, and no matrix is in both "
            f"lists; {_ADVICE}"
        )
    return Rotations(
        block=block,
        signs=reader.signs(block),
        names=frozenset((*names, *inverse)),
        grouped=reader.truth(_GROUPED),
    )


class _Keys:
    def __init__(self, keys: Mapping[str, MetadataValue]) -> None:
        self._keys = keys

    def wrong(self, key: str, rule: str) -> FormatError:
        value = self._keys.get(key)
        found = "is missing" if value is None else f"is {value!r:.80}"
        return FormatError(f"{PREFIX}{key} {found}, must be {rule}: {_ADVICE}")

    def whole(self, key: str) -> int:
        value = self._keys.get(key)
        if type(value) is not int:
            raise self.wrong(key, "a whole number")
        return value

    def truth(self, key: str) -> bool:
        """False if there is none."""
        value = self._keys.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        value = self._keys.get(key, default)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.wrong(key, "a list of names")
        if len(set(value)) != len(value):
            raise self.wrong(key, "a list in which no name stands twice")
        return value

    def numbers(self, key: str) -> list[int]:
        value = self._keys.get(key)
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "iuf":
            raise self.wrong(key, "a list of numbers")
        if not np.isfinite(value).all() or (value != np.rint(value)).any():
            raise self.wrong(key, "a list of whole numbers")
        return [int(number) for number in value]

    def signs(self, block: int) -> dict[int, NDArray[np.float32] | None]:
        widths = self.numbers("sign_widths")
        if len(set(widths)) != len(widths) or any(w < 1 or w % block for w in widths):
            raise self.wrong("sign_widths", f"different multiples of block_size, which is {block}")
        mode = self._keys.get("sign_mode")
        if mode == "identity":
            return dict.fromkeys(widths)
        if mode != "explicit":
            raise self.wrong("sign_mode", "'explicit' or 'identity'")
        values = np.array(self.numbers("sign_values"), np.float64)
        if len(values) != sum(widths):
            raise FormatError(
                f"{PREFIX}sign_values has {len(values)} signs, and sign_widths ask for {sum(widths)}: {_ADVICE}"
            )
        bad = np.abs(values) != 1
        if bad.any():
            raise FormatError(
                f"{PREFIX}sign_values holds {values[bad][0]:g} at {int(np.flatnonzero(bad)[0])}: signs are 1 and -1; "
                f"{_ADVICE}"
            )
        parts = np.split(values.astype(np.float32), np.cumsum(widths)[:-1])
        return dict(zip(widths, parts, strict=True))
