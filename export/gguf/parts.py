"""This file holds models whose GGUF is split into several files, which llama.cpp's programs write and read.

All parts lie in one folder, and are called ``<name>-00001-of-00003.gguf`` and so on; the first has the metadata.
"""

import re
from collections.abc import Set
from pathlib import Path

from nanochat.errors import FormatError
from nanochat.export.gguf.container import GgufFile, GgufTensor, read_gguf

__all__ = ["read_whole"]

_PART = re.compile(
    r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE
)
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"


def read_whole(path: Path) -> GgufFile:
    """The metadata and tensors of a GGUF file, and of all its parts, if it is the first of several.

    Raises
    ------
    FormatError
        If it is another part, or one of the others is missing or of another model.
    """
    first = read_gguf(path)
    count = first.metadata.get(_COUNT, 1)
    if count == 1:
        return first
    name = _PART.fullmatch(path.name)
    if (
        type(count) is not int
        or not 1 < count < 10**5
        or name is None
        or int(name["count"]) != count
    ):
        raise FormatError(
            f"{path}: {_COUNT} is {count!r:.40}, so it is a part of a model, and parts are called "
            "NAME-00001-of-00003.gguf, with their number; give the file its name back, or fetch it again"
        )
    if first.metadata.get(_NUMBER) != 0:
        start = f"{name['name']}-00001-of-{name['count']}{name['suffix']}"
        raise FormatError(f"{path}: it is a part of a model in {count}; pass the first, {start}")
    tensors = dict(first.tensors)
    for number in range(1, count):
        part = path.with_name(f"{name['name']}-{number + 1:05}-of-{name['count']}{name['suffix']}")
        if not part.is_file():
            raise FormatError(f"{part}: no such file, and it is a part of {path.name}; fetch it")
        tensors |= _tensors_of(part, number, count, tensors.keys())
    expected = first.metadata.get(_TENSORS, len(tensors))
    if expected != len(tensors):
        raise FormatError(
            f"{path}: {_TENSORS} is {expected!r:.40}, and its parts have {len(tensors)}: they are of several models; "
            "fetch all of them again"
        )
    return GgufFile(metadata=first.metadata, tensors=tensors)


def _tensors_of(part: Path, number: int, count: int, known: Set[str]) -> dict[str, GgufTensor]:
    found = read_gguf(part)
    told = found.metadata.get(_NUMBER), found.metadata.get(_COUNT)
    if told != (number, count):
        raise FormatError(
            f"{part}: {_NUMBER} and {_COUNT} are {told[0]!r:.40} and {told[1]!r:.40}, must be {number} and {count}: it "
            "is a part of another model; fetch all parts again"
        )
    both = sorted(known & found.tensors.keys())
    if both:
        raise FormatError(
            f"{part}: has {both[0]!r:.80}, as a part before it has; fetch all parts again"
        )
    return dict(found.tensors)
