"""This file holds what a model needs of its tokenizer, whoever made it, and the byte alphabet of GPT-2."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

from nanochat.errors import InputError

__all__ = ["BYTES", "MAX_FILE_BYTES", "TextCodec", "call", "check_text"]

# Of a ``tokenizer.json``; those of 250,000 tokens have 20 MB.
MAX_FILE_BYTES = 64 * 2**20


class TextCodec(Protocol):
    """What a model needs of its tokenizer: `Tokenizer`, or `nanochat.text.library.LibraryTokenizer`.

    Text is data: no text becomes a special token unless the caller asks for it.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest token."""

    @property
    def bos(self) -> int | None:
        """Token of the start of a text, if there is one."""

    @property
    def eos(self) -> int | None:
        """Token of the end of a text, if there is one."""

    @property
    def pad(self) -> int | None:
        """Token of padding, if there is one."""

    @property
    def opening(self) -> tuple[int, ...]:
        """Tokens that stand before every text: the start's, or none."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens after which a model has no more to say."""

    @property
    def specials(self) -> Mapping[str, int]:
        """Special tokens by their names."""

    @property
    def chat_template(self) -> str:
        """How a conversation is written, in Jinja; empty if the model has none."""

    @property
    def fingerprint(self) -> str:
        """Equal for tokenizers that encode alike."""

    def __len__(self) -> int:
        """As `vocab_size`."""

    def __call__(self, text: str | Sequence[str]) -> dict[str, object]:
        """Tokens and a mask of a text, or of each of several; see `call`."""

    def files(self) -> dict[str, bytes]:
        """Content of its files, by name."""

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Tokens of a text, without `opening`; with `specials`, names of special tokens become those."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text."""

    def decode(self, tokens: Iterable[int], *, skip_specials: bool = True) -> str:
        """Text of tokens, with U+FFFD for bytes that are not UTF-8."""

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token inside a text; a special has none."""


def call(codec: "TextCodec", text: str | Sequence[str]) -> dict[str, object]:
    """What calling a tokenizer gives in transformers: tokens, behind those that stand before every text, and a mask."""
    if isinstance(text, str):
        ids = [*codec.opening, *codec.encode(text)]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}
    every = [[*codec.opening, *ids] for ids in codec.encode_batch([*text])]
    return {"input_ids": every, "attention_mask": [[1] * len(ids) for ids in every]}


def check_text(text: str) -> str:
    """Return the text, if it is a string that has a UTF-8 form."""
    if not isinstance(text, str):
        raise InputError(f"cannot encode {type(text).__name__}: pass a str, or use encode_bytes")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"character {error.start} of the text is a lone surrogate, which has no UTF-8 form: "
            "read the text with errors='replace', or pass its bytes to encode_bytes"
        ) from error
    return text


def _byte_alphabet() -> tuple[str, ...]:
    """Return the character of each byte: itself if Latin-1 prints it, else the next from U+0100.

    References
    ----------
    .. [1] A. Radford et al., GPT-2, ``bytes_to_unicode`` in src/encoder.py, commit 9b63575.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


# The byte that each character of a piece stands for.
BYTES: Mapping[str, int] = MappingProxyType({c: byte for byte, c in enumerate(_byte_alphabet())})
