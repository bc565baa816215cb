"""This file holds where the tensors of a GGUF file lie, and which of two layouts the number 42 stands for in it.

A fork of llama.cpp has written blocks of 128 columns under the number that blocks of 64 have in llama.cpp, and such
files are still the most linked ones of their models. Nothing in the metadata tells; the offsets of the tensors and the
end of the file do, as sizes under the other reading are 17/18 or 18/17 of what they should be. Where all tensors are so
small that padding hides this, the bytes decide: scales that are read as codes, or codes as padding, are soon illegal.

References
----------
.. [1] github.com/ggml-org/llama.cpp, pull request 25824 and the comments of 24448: files of both layouts.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.blocks.checks import count_zeros, require_scales
from nanochat.errors import FormatError, NumericError
from nanochat.export.gguf.types import PQ2_0, Q2_0, TYPES, TensorType, packed_blocks

__all__ = ["Entry", "find_kinds", "round_up"]

_LOGGER = logging.getLogger(__name__)

# What the number of Q2_0 may stand for: the second is PQ2_0 under its older number.
_READINGS = (Q2_0, PQ2_0)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a header says of a tensor: name, number of its type, shape with rows first, first byte among the data."""

    name: str
    number: int
    shape: tuple[int, ...]
    start: int


def find_kinds(
    path: Path, entries: Sequence[Entry], data: NDArray[np.uint8], *, begin: int, alignment: int
) -> list[TensorType]:
    """The types of all tensors, which lie in order, without gaps and within the file.

    Parameters
    ----------
    path : Path
        For messages.
    entries : sequence of Entry
        In the file's order; their numbers are in `TYPES`.
    data : uint8 array, shape (bytes,)
        The file from its byte `begin` on, which offsets count from.
    alignment : int
        Bytes; every offset is a multiple.

    Raises
    ------
    FormatError
        If a row is no whole blocks, a tensor is not where the one before it ends, the file was cut, or the number 42
        fits in neither way or in both.
    """
    readings = _READINGS if any(entry.number == Q2_0.number for entry in entries) else (Q2_0,)
    ends: dict[TensorType, int] = {}
    faults: list[str] = []
    for reading in readings:
        found = _end(entries, reading, alignment)
        if isinstance(found, int):
            ends[reading] = found
        else:
            faults.append(found)
    if not ends:
        if len(faults) == 1:
            raise FormatError(f"{path}: {faults[0]}; fetch the file again")
        raise FormatError(
            f"{path}: type 42 fits neither as {_described(Q2_0)}, nor as {_described(PQ2_0)}: in the first way "
            f"{faults[0]}; in the second {faults[1]}; fetch the file again"
        )
    whole = {kind: end for kind, end in ends.items() if end <= data.size}
    # More than padding may follow the last tensor, but where one reading leaves no more, it is the right one.
    exact = [kind for kind, end in whole.items() if data.size <= round_up(end, alignment)]
    fitting = exact or list(whole)
    if len(fitting) > 1 or (len(ends) > 1 and not exact):
        fitting = [kind for kind in fitting if _is_sound(entries, data, kind, alignment)]
    if not fitting and len(whole) < len(ends):
        needed = min(end for end in ends.values() if end > data.size)
        raise FormatError(
            f"{path}: {begin + data.size} bytes, of the {begin + needed} that its tensors take: the file was cut, such "
            "as by a download that did not end; fetch it again"
        )
    if len(fitting) != 1:
        raise FormatError(
            f"{path}: type 42 may be {_described(Q2_0)}, or {_described(PQ2_0)}: all offsets fit both, and the bytes "
            f"of its tensors are legal in {'both' if fitting else 'neither'}; fetch the file again, or pass one whose "
            "linears are PQ2_0 or TQ2_0"
        )
    if fitting[0] != Q2_0:
        _LOGGER.info("%s: type 42 is %s, as its sizes tell", path, _described(fitting[0]))
    return [_kind(entry, fitting[0]) for entry in entries]


def round_up(position: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-position // alignment) * alignment


def _described(kind: TensorType) -> str:
    return f"{kind.name}, blocks of {kind.columns} columns in {kind.bytes} bytes"


def _kind(entry: Entry, reading: TensorType) -> TensorType:
    return reading if entry.number == Q2_0.number else TYPES[entry.number]


def _end(entries: Sequence[Entry], reading: TensorType, alignment: int) -> int | str:
    """Return the first byte behind the last tensor, or what does not fit."""
    names: set[str] = set()
    position = end = 0
    for entry in entries:
        kind = _kind(entry, reading)
        if entry.shape[-1] % kind.columns:
            return (
                f"{entry.name!r:.80} has rows of {entry.shape[-1]} columns, must be a multiple of {kind.columns} for "
                f"{kind.name}"
            )
        if entry.name in names or entry.start != position:
            return (
                f"{entry.name!r:.80}, {kind.name} of shape {list(entry.shape)}, is at byte {entry.start}: must be "
                f"there once, and at {position}, behind the tensor before it"
            )
        names.add(entry.name)
        end = position + kind.num_bytes(entry.shape)
        position = round_up(end, alignment)
    return end


def _is_sound(
    entries: Sequence[Entry], data: NDArray[np.uint8], reading: TensorType, alignment: int
) -> bool:
    """Whether all bytes under the number 42 are legal codes, scales and padding."""
    for entry in entries:
        size = reading.num_bytes(entry.shape)
        if entry.number != Q2_0.number or not size:
            continue
        end = entry.start + size
        rows = data[entry.start : end].reshape(
            -1, entry.shape[-1] // reading.columns * reading.bytes
        )
        packed, scales = packed_blocks(reading, rows, name=entry.name)
        try:
            count_zeros(packed, name=entry.name)
            require_scales(scales, name=entry.name)
        except NumericError:
            return False
        if data[end : round_up(end, alignment)].any():
            return False
    return True
