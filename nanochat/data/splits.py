"""This file holds the choice of what is for evaluation: whole files by a hash of their names, or pieces of each.

A file stays in its split when the corpus moves, grows or is read again.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator

from nanochat.errors import InputError

__all__ = ["is_held_out", "pieces", "position"]

# Of a file, each of which ends with a piece that is held out.
_SECTION_CHARACTERS = 2**20
# How far before its place a cut may be, to be at the start of a line.
_LINE_CHARACTERS = 1000


def is_held_out(name: str, share: float) -> bool:
    """Return whether the file of this relative path is for evaluation, as are a `share` of all."""
    if not 0 <= share < 1:
        raise InputError(f"held_out={share} is not a share of the files: pass 0 <= held_out < 1")
    return position(name) < share


def position(name: str, salt: str = "split") -> float:
    """Return a number in [0, 1) that depends on `name` and `salt` only."""
    digest = hashlib.blake2b(f"{salt}\0{name}".encode("utf-8", "surrogateescape"), digest_size=8)
    # 53 bits, what a float holds exactly.
    return (int.from_bytes(digest.digest()) >> 11) / 2**53


def pieces(text: str, share: float) -> Iterator[tuple[int, str, bool]]:
    """Cut a text into sections, and each into a part to train on and the last `share` of it, which is held out."""
    count = math.ceil(len(text) / _SECTION_CHARACTERS)
    ends = [
        _line_start(text, len(text) * number // count, _LINE_CHARACTERS)
        for number in range(1, count)
    ]
    for number, (start, end) in enumerate(itertools.pairwise([0, *ends, len(text)])):
        length = round((end - start) * share)
        # A share that is small beside the lines would otherwise grow.
        cut = _line_start(text, end - length, min(length, _LINE_CHARACTERS, end - length - start))
        for part, held_out in ((text[start:cut], False), (text[cut:end], True)):
            if part:
                yield number, part, held_out


def _line_start(text: str, index: int, reach: int) -> int:
    """Where the line begins that holds `index`, if it is not further back than `reach`."""
    return text.rfind("\n", index - reach, index) + 1 or index
