"""This file holds the way from pieces to bytes, as the decoder of a ``tokenizer.json`` describes it."""

import re

from nanochat.errors import FormatError
from nanochat.text.codec import BYTES

__all__ = ["Pieces"]

_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class Pieces:
    """Makes bytes of one piece at a time.

    Parameters
    ----------
    decoder : object
        ``decoder`` of a ``tokenizer.json``.

    Attributes
    ----------
    strips_space : bool
        Whether a text begins with a space that is not its own.

    Raises
    ------
    FormatError
        If that decoder cannot do one piece at a time, or is unknown.

    Examples
    --------
    >>> Pieces({"type": "Metaspace", "replacement": "_"}).bytes_of("_be")
    b' be'
    """

    def __init__(self, decoder: object) -> None:
        self.strips_space = False
        self._byte_level = self._byte_pieces = False
        self._replaced: list[tuple[str, str]] = []
        match decoder:
            case {"type": "Sequence", "decoders": [*steps]}:
                pass
            case _:
                steps = [decoder]
        for step in steps:
            self._add(step)
        if not self._byte_level and not self._replaced:
            raise _unknown(decoder)

    def bytes_of(self, piece: str) -> bytes:
        """Bytes of a piece inside a text."""
        if self._byte_level and all(character in BYTES for character in piece):
            return bytes(BYTES[character] for character in piece)
        byte = _BYTE_PIECE.fullmatch(piece) if self._byte_pieces else None
        if byte:
            return bytes([int(byte[1], 16)])
        for old, new in self._replaced:
            piece = piece.replace(old, new)
        return piece.encode()

    def _add(self, step: object) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "Metaspace", "replacement": str(mark), **others}:
                self._replaced.append((mark, " "))
                self.strips_space = others.get("prepend_scheme", "always") != "never"
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
                self._replaced.append((old, new))
            case {"type": "ByteFallback"}:
                self._byte_pieces = True
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0}:
                self.strips_space = start == 1
            case {"type": "Fuse"}:
                pass
            case _:
                raise _unknown(step)


def _unknown(decoder: object) -> FormatError:
    return FormatError(
        f"pieces become text by {decoder!r:.200}, which this package cannot do one token at a time: only ByteLevel, "
        "Metaspace, Replace, ByteFallback, Fuse and Strip, of byte-level BPE and SentencePiece; pass a model with such "
        "a tokenizer"
    )
