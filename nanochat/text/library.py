"""This file holds other people's tokenizers, which the `tokenizers` library runs as their ``tokenizer.json`` says.

Text is data, as with our own: the name of a special token in it is spelled in other tokens.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import tokenizers

from nanochat.errors import FormatError, InputError
from nanochat.files import exists, parse_json, read_bytes
from nanochat.text.codec import BYTES, MAX_FILE_BYTES, TextCodec, call, check_text
from nanochat.text.roles import Roles, added_tokens, read_roles, starting, write_roles
from nanochat.text.tokenizer import SPECIALS, Tokenizer

__all__ = ["LibraryTokenizer", "Pieces", "load_tokenizer"]

_TOKENIZER, _SETTINGS, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_OTHERS = ("generation_config.json", "config.json")
# Where older tokenizers name their special tokens, which comes first in files without the newer list.
_NAMES, _NEWER = "special_tokens_map.json", "added_tokens_decoder"
# What is there without a file for the library: of SentencePiece, of slow tokenizers, of tiktoken, of Mistral.
_OLDER = ("tokenizer.model", "vocab.json", "tiktoken.model", "tekken.json")
# Some list every one of their added tokens.
_MAX_SETTINGS_BYTES = 4 * 2**20
# Special tokens that end a turn or a text in whatever model has them; files often name one of the two only.
_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>")


def load_tokenizer(directory: str | Path) -> TextCodec:
    """The tokenizer of a folder: one of ours if its special tokens are, else another's."""
    path = Path(directory) / _TOKENIZER
    if not exists(path):
        raise FormatError(_without_tokenizer(Path(directory)))
    content = read_bytes(path, limit=MAX_FILE_BYTES)
    data = parse_json(content, str(path))
    try:
        match data.get("added_tokens"):
            case [*entries] if _contents(entries[: len(SPECIALS)]) == SPECIALS:
                return Tokenizer.from_json(data)
        return _load(Path(directory), content, data)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library, as a `TextCodec`.

    Parameters
    ----------
    data : mapping
        Content of a ``tokenizer.json``.
    roles : Roles
        What its tokens are for.
    files : mapping, optional
        Content of its files, which `files` gives back unless other programs would encode otherwise by them.
    """

    def __init__(
        self, data: Mapping[str, object], roles: Roles, files: Mapping[str, bytes] | None = None
    ) -> None:
        added = added_tokens(data)
        numbers = {token.name: token.token for token in added}
        stops = {roles.eos, *roles.stops, *(numbers.get(name) for name in _ENDS)} - {None}
        named = {roles.bos, *stops} - {None}
        # Nothing ends an answer that a text could hold.
        special = {token.name for token in added if token.special or token.token in named}
        plain = _without_limits(data, special)
        self._json = json.dumps(plain)
        self._library = _library(self._json, specials=False)
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = 1 + max(vocabulary.values(), default=-1)
        for number in named:
            if number is None or not 0 <= number < self.vocab_size:
                raise FormatError(
                    f"token {number} starts or ends texts, but the vocabulary has {self.vocab_size}: the files are of "
                    "two tokenizers; fetch them again"
                )
        self.bos, self.eos = roles.bos, roles.eos
        # Nothing here is padded, so that one of another vocabulary does no harm.
        self.pad = roles.pad if roles.pad in range(self.vocab_size) else None
        self.chat_template = roles.chat_template
        self._pieces = Pieces(data.get("decoder"))
        self._texts = {token: name for name, token in numbers.items()}
        self.specials = {name: numbers[name] for name in sorted(special)}
        self.special_ids = frozenset(self.specials.values())
        self.stop_ids = frozenset(token for token in stops if token is not None)
        self._not_from_text = self.special_ids - {_unknown(data, vocabulary)}
        bare, whole = self._encoded("a", starts=False), self._encoded("a", starts=True)
        self.opening = _opening(roles, bare, whole)
        # Some programs look for the start of a text here alone.
        if whole != [*self.opening, *bare]:
            plain["post_processor"] = starting(
                {self._piece(token): token for token in self.opening}
            )
        self._json = json.dumps(plain)
        given = dict(files or {})
        if _TOKENIZER not in given or plain != data:
            given[_TOKENIZER] = self._json.encode()
        settings = parse_json(given.get(_SETTINGS, b"{}"), _SETTINGS)
        given[_SETTINGS] = write_roles(roles, self._texts, settings)
        self._files = given

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ``tokenizer.json``."""
        return hashlib.sha256(self._files[_TOKENIZER]).hexdigest()

    def files(self) -> dict[str, bytes]:
        return dict(self._files)

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(self, text: str | Sequence[str]) -> dict[str, object]:
        return call(self, text)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """See `TextCodec.encode`; a text with a special token's name that has no other spelling is refused."""
        library = self._with_specials if specials else self._library
        ids = library.encode(check_text(text), add_special_tokens=False).ids
        return ids if specials or self._not_from_text.isdisjoint(ids) else self._spell(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        encodings = self._library.encode_batch_fast(
            list(map(check_text, texts)), add_special_tokens=False
        )
        return [
            encoding.ids if self._not_from_text.isdisjoint(encoding.ids) else self._spell(text)
            for encoding, text in zip(encodings, texts, strict=True)
        ]

    def decode(self, tokens: Iterable[int], *, skip_specials: bool = True) -> str:
        """See `TextCodec.decode`; the space that the tokenizer puts before a text is taken off."""
        skipped = self.special_ids if skip_specials else frozenset()
        pieces = [self._piece(token) for token in tokens if token not in skipped]
        return self._pieces.decode(pieces).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """See `TextCodec.token_bytes`; an added token is decoded as every other, as the library does."""
        piece = self._piece(token)
        return b"" if token in self.special_ids else self._pieces.bytes_of(piece)

    def _piece(self, token: int) -> str:
        if not 0 <= token < self.vocab_size:
            raise InputError(
                f"token {token} is outside this vocabulary of {self.vocab_size} tokens: decode with the tokenizer "
                "that encoded the text"
            )
        # The library knows no piece where the numbers of a vocabulary have a gap.
        return self._library.id_to_token(token) or ""

    @cached_property
    def _with_specials(self) -> tokenizers.Tokenizer:
        return _library(self._json, specials=True)

    def _spell(self, text: str) -> list[int]:
        """Tokens of a text in which the vocabulary itself, not the search for special tokens, finds one."""
        names = sorted(self.specials, key=len, reverse=True)
        pattern = "|".join(f"(?<={re.escape(n[0])})(?={re.escape(n[1:])})" for n in names if n[1:])
        tokens: list[int] = []
        for part in re.split(pattern, text) if pattern else [text]:
            tokens += self._library.encode(part, add_special_tokens=False).ids
        if not self._not_from_text.isdisjoint(tokens):
            name = next(self._texts[token] for token in tokens if token in self._not_from_text)
            raise InputError(
                f"the text holds {name!r:.80}, which this tokenizer cannot spell in other tokens: leave it out"
            )
        return tokens

    def _encoded(self, text: str, *, starts: bool) -> list[int]:
        with _without_panic():
            return self._library.encode(text, add_special_tokens=starts).ids


def _opening(roles: Roles, bare: list[int], whole: list[int]) -> tuple[int, ...]:
    """What stands before a text, by its tokens with and without what the library adds."""
    if roles.adds_bos is not None:
        return (roles.bos,) if roles.adds_bos and roles.bos is not None else ()
    # Some put a token behind the text, too, which belongs to training.
    starts = range(len(whole) - len(bare) + 1)
    first = next((i for i in starts if whole[i : i + len(bare)] == bare), 0)
    return tuple(whole[:first])


def _without_tokenizer(directory: Path) -> str:
    there = [name for name in _OLDER if exists(directory / name)]
    if not there:
        return f"{directory}: no {_TOKENIZER} beside the model; copy the one that it was made with to there"
    return (
        f"{directory}: no {_TOKENIZER} beside {there[0]}, which is not read here: transformers makes one, by "
        f"AutoTokenizer.from_pretrained({str(directory)!r}).save_pretrained({str(directory)!r})"
    )


def _contents(entries: list[object]) -> tuple[object, ...]:
    return tuple(entry.get("content") if isinstance(entry, dict) else None for entry in entries)


def _library(text: str, *, specials: bool) -> tokenizers.Tokenizer:
    with _without_panic():
        try:
            library = tokenizers.Tokenizer.from_str(text)
        # The library raises nothing more specific.
        except Exception as error:
            raise FormatError(
                f"the tokenizers library cannot read this tokenizer ({error!s:.200}); fetch it again"
            ) from error
    # The library reads this flag as: the text may not produce special tokens.
    library.encode_special_tokens = not specials
    return library


@contextmanager
def _without_panic() -> Iterator[None]:
    """Make an error of what the library's Rust code raises where it gives up, which is no `Exception`."""
    try:
        yield
    except BaseException as error:
        # The class has no name that could be imported.
        if type(error).__name__ != "PanicException":
            raise
        raise FormatError(
            f"the tokenizers library gives up on this tokenizer ({error!s:.200}); fetch it again"
        ) from error


def _unknown(data: Mapping[str, object], vocabulary: Mapping[str, int]) -> int | None:
    """The token of characters that the vocabulary lacks: text does become that one."""
    model = data.get("model")
    if not isinstance(model, dict):
        return None
    unknown = model.get("unk_id", vocabulary.get(str(model.get("unk_token"))))
    return unknown if isinstance(unknown, int) else None


def _load(directory: Path, content: bytes, data: Mapping[str, object]) -> LibraryTokenizer:
    files = {_TOKENIZER: content}
    for name in (_SETTINGS, _TEMPLATE):
        if exists(directory / name):
            files[name] = read_bytes(directory / name, limit=_MAX_SETTINGS_BYTES)
    others = {
        name: parse_json(read_bytes(directory / name, limit=_MAX_SETTINGS_BYTES), name)
        for name in (*_OTHERS, _NAMES)
        if exists(directory / name)
    }
    settings = parse_json(files.get(_SETTINGS, b"{}"), _SETTINGS)
    older = others.pop(_NAMES, {})
    roles = read_roles(
        settings if _NEWER in settings else {**settings, **older},
        others,
        names={added.name: added.token for added in added_tokens(data)},
        template=files.get(_TEMPLATE, b"").decode("utf-8", "replace"),
    )
    return LibraryTokenizer(data, roles, files)


def _without_limits(data: Mapping[str, object], special: set[str]) -> dict[str, object]:
    """The same, for texts that are encoded whole and alone, and with these special tokens."""
    plain = {**data, **{key: None for key in ("truncation", "padding") if key in data}}
    entries = data.get("added_tokens")
    if entries:
        assert isinstance(entries, list)
        plain["added_tokens"] = [{**e, "special": e["content"] in special} for e in entries]
    return plain


_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class Pieces:
    """Makes bytes of one piece at a time, if the decoder of a tokenizer can be taken so.

    Parameters
    ----------
    decoder : object
        ``decoder`` of a ``tokenizer.json``.

    Examples
    --------
    >>> pieces = Pieces({"type": "Metaspace", "replacement": "_"})
    >>> pieces.bytes_of("_be"), pieces.decode(["_to", "_be"])
    (b' be', b'to be')
    """

    def __init__(self, decoder: object) -> None:
        self._byte_level = self._byte_pieces = False
        # Whether a text begins with a space that is not its own, and what of its first piece is none either.
        self._strips_space = self._is_fused = False
        self._first_mark = ""
        self._replacements: list[tuple[str, str]] = []
        match decoder:
            case {"type": "Sequence", "decoders": [*steps]}:
                pass
            case _:
                steps = [decoder]
        for step in steps:
            self._add(step)
        if not self._byte_level and not self._replacements:
            raise _unknown_step(decoder)

    def decode(self, pieces: Sequence[str]) -> bytes:
        """Bytes of a whole text."""
        if self._first_mark and pieces:
            pieces = [pieces[0].replace(self._first_mark, ""), *pieces[1:]]
        text = b"".join(map(self.bytes_of, pieces))
        return text.removeprefix(b" ") if self._strips_space else text

    def bytes_of(self, piece: str) -> bytes:
        """Bytes of a piece inside a text."""
        if self._byte_level and all(character in BYTES for character in piece):
            return bytes(BYTES[character] for character in piece)
        byte = _BYTE_PIECE.fullmatch(piece) if self._byte_pieces else None
        if byte:
            return bytes([int(byte[1], 16)])
        for old, new in self._replacements:
            piece = piece.replace(old, new)
        return piece.encode()

    def _add(self, step: object) -> None:
        match step:
            case {"type": "ByteLevel"}:
                self._byte_level = True
            case {"type": "Metaspace", "replacement": str(mark), **others}:
                self._replacements.append((mark, " "))
                # The library takes all marks off the first piece, however many there are.
                if others.get("prepend_scheme", "always") != "never":
                    self._first_mark = mark
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
                self._replacements.append((old, new))
            case {"type": "ByteFallback"}:
                self._byte_pieces = True
            case {"type": "Strip", "content": " ", "start": 0, "stop": 0}:
                pass
            # Before, it would be every piece that loses a space.
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if self._is_fused:
                self._strips_space = True
            case {"type": "Fuse"}:
                self._is_fused = True
            case _:
                raise _unknown_step(step)


def _unknown_step(decoder: object) -> FormatError:
    return FormatError(
        f"pieces become text by {decoder!r:.200}, which this package cannot do one token at a time: only ByteLevel, "
        "Metaspace, Replace, ByteFallback, Fuse and Strip, of byte-level BPE and SentencePiece; pass a model with such "
        "a tokenizer"
    )
