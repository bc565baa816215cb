"""This file holds the reader of the tokenizers in other people's GGUF files, as a ``tokenizer.json`` would say it.

Two of llama.cpp's kinds are known: byte-level BPE (*gpt2*), whose way to split a text has a name in the file, and
SentencePiece's BPE (*llama*), which ranks its merges by the scores of what they make.

References
----------
.. [1] github.com/ggml-org/llama.cpp, src/llama-vocab.cpp, commit 0c1e570.
"""

import logging
from collections.abc import Iterator, Mapping

import gguf
import numpy as np

from nanochat.errors import FormatError
from nanochat.export.gguf.container import MetadataValue
from nanochat.export.gguf.splits import DEFAULT, SPLITS
from nanochat.text.codec import TextCodec
from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles

__all__ = ["read_vocabulary"]

_KEYS = gguf.Keys.Tokenizer
_KINDS = gguf.TokenType
_ENDS = (_KEYS.EOT_ID, _KEYS.EOM_ID)
_BOUNDS = (_KEYS.BOS_ID, _KEYS.EOS_ID, *_ENDS)
# SentencePiece's own limit is 16 characters, some models' runs of spaces have 64.
_MAX_PIECE = 1024
_SPACE = "▁"
_LOGGER = logging.getLogger(__name__)


def read_vocabulary(metadata: Mapping[str, MetadataValue], *, rows: int) -> TextCodec:
    """The tokenizer of a file whose embedding has so many rows."""
    vocabulary = _Vocabulary(metadata)
    if len(vocabulary.tokens) > rows:
        raise FormatError(
            f"{len(vocabulary.tokens)} tokens, but the embedding has only {rows} rows; fetch the file again"
        )
    kind = metadata.get(_KEYS.MODEL)
    if kind == "gpt2":
        return _byte_level(vocabulary, metadata)
    if kind == "llama":
        return _sentencepiece(vocabulary, metadata)
    raise FormatError(
        f"{_KEYS.MODEL} is {kind!r:.80}: of the tokenizers in GGUF files this package knows gpt2 and llama; pass a "
        "model with one of these, or its Hugging Face folder"
    )


class _Vocabulary:
    """Pieces and kinds of the tokens; those that no text has are left out."""

    def __init__(self, metadata: Mapping[str, MetadataValue]) -> None:
        self.tokens = _texts(metadata, _KEYS.LIST)
        kinds = metadata.get(_KEYS.TOKEN_TYPE)
        if kinds is None:
            kinds = np.full(len(self.tokens), int(_KINDS.NORMAL))
        if not isinstance(kinds, np.ndarray) or len(kinds) < len(self.tokens):
            raise FormatError(
                f"{_KEYS.TOKEN_TYPE} is no list of {len(self.tokens)} numbers; fetch the file again"
            )
        self.kinds: list[int] = kinds[: len(self.tokens)].tolist()
        self.roles = {key: self._role(metadata, key) for key in (*_BOUNDS, _KEYS.PAD_ID)}
        for token in map(self.roles.get, _BOUNDS):
            # What starts or ends a text is no part of it, whatever its kind.
            if token is not None:
                self.kinds[token] = _KINDS.CONTROL
        named = [
            (piece, token)
            for token, (piece, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if piece and kind != _KINDS.UNUSED
        ]
        self.used = dict(named)
        if len(self.used) < len(named):
            raise FormatError("two tokens have the same text; fetch the file again")

    def _role(self, metadata: Mapping[str, MetadataValue], key: str) -> int | None:
        """The token of a role; one that is not in the vocabulary is none, as in llama.cpp."""
        value = metadata.get(key)
        if value is None:
            return None
        if type(value) is not int:
            raise FormatError(f"{key} is {value!r:.80}, must be a token; fetch the file again")
        if not 0 <= value < len(self.tokens):
            _LOGGER.warning(
                "%s is %d, and the vocabulary has %d: overlooked", key, value, len(self.tokens)
            )
            return None
        return value

    def of_kind(self, *kinds: gguf.TokenType) -> Iterator[tuple[str, int]]:
        """Pieces and numbers of the used tokens of some kinds."""
        for piece, token in self.used.items():
            if self.kinds[token] in kinds:
                yield piece, token

    def added(self) -> list[dict[str, object]]:
        """What is found in a text before the rest is encoded."""
        special = {piece for piece, _ in self.of_kind(_KINDS.CONTROL, _KINDS.UNKNOWN)}
        found = self.of_kind(_KINDS.CONTROL, _KINDS.UNKNOWN, _KINDS.USER_DEFINED)
        return [
            {
                "id": token,
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": piece in special,
            }
            for piece, token in found
            if piece
        ]


def _byte_level(vocabulary: _Vocabulary, metadata: Mapping[str, MetadataValue]) -> TextCodec:
    name = metadata.get(_KEYS.PRE, "")
    if not isinstance(name, str) or (name or DEFAULT) not in SPLITS:
        raise FormatError(
            f"{_KEYS.PRE} is {name!r:.80}, a way to split texts that this package does not know: pass the model's "
            "Hugging Face folder, whose tokenizer.json says it itself"
        )
    if name in ("", DEFAULT):
        _LOGGER.warning(
            "the file does not say by %s how texts are split: they are split as llama.cpp does then, which may not be "
            "what the model was trained with",
            _KEYS.PRE,
        )
    split = SPLITS[name or DEFAULT]
    merges: list[list[str]] = []
    for merge in _texts(metadata, _KEYS.MERGES):
        # A piece may begin with a space, where it stands for one.
        left, space, right = merge[1:].partition(" ")
        if not space or not right:
            raise FormatError(f"the merge {merge!r:.80} is no pair; fetch the file again")
        merges.append([merge[0] + left, right])
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in split.patterns
    ]
    model = {"ignore_merges": split.whole, "vocab": vocabulary.used, "merges": merges}
    return _tokenizer(
        vocabulary,
        _roles(vocabulary, metadata, adds_bos=split.adds_bos),
        model=model,
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [*splits, {**byte_level, "use_regex": False}],
        },
        decoder={**byte_level, "use_regex": True},
    )


def _sentencepiece(vocabulary: _Vocabulary, metadata: Mapping[str, MetadataValue]) -> TextCodec:
    scores = metadata.get(_KEYS.SCORES)
    if not isinstance(scores, np.ndarray) or len(scores) != len(vocabulary.tokens):
        raise FormatError(
            f"{_KEYS.SCORES} is no list of {len(vocabulary.tokens)} numbers; fetch the file again"
        )
    unknown = next(vocabulary.of_kind(_KINDS.UNKNOWN), ("", 0))[0] or None
    prefix = metadata.get(_KEYS.ADD_PREFIX, True) is not False
    model = {
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": any(vocabulary.of_kind(_KINDS.BYTE)),
        "vocab": vocabulary.used,
        # What a user defined is made by merges, too, if it is spelled as texts are here.
        "merges": _merges(
            dict(vocabulary.of_kind(_KINDS.NORMAL, _KINDS.USER_DEFINED)), scores.tolist()
        ),
    }
    spaces: list[object] = [{"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}]
    back: list[object] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        spaces.insert(0, {"type": "Prepend", "prepend": _SPACE})
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _tokenizer(
        vocabulary,
        _roles(vocabulary, metadata, adds_bos=True, bos=1, eos=2),
        model=model,
        normalizer={"type": "Sequence", "normalizers": spaces},
        decoder={"type": "Sequence", "decoders": back},
    )


def _merges(pieces: Mapping[str, int], scores: list[float]) -> list[list[str]]:
    """Every pair of pieces that makes a third, the best first."""
    ranked: list[tuple[float, int, int, list[str]]] = []
    for piece, token in pieces.items():
        if len(piece) > _MAX_PIECE:
            raise FormatError(
                f"the token {piece!r:.80} has {len(piece)} characters, may have {_MAX_PIECE}; fetch the file again"
            )
        for i in range(1, len(piece)):
            left, right = piece[:i], piece[i:]
            if left in pieces and right in pieces:
                ranked.append((-scores[token], pieces[left], pieces[right], [left, right]))
    ranked.sort(key=lambda merge: merge[:3])
    return [pair for *_, pair in ranked]


def _tokenizer(
    vocabulary: _Vocabulary,
    roles: Roles,
    *,
    model: Mapping[str, object],
    decoder: object,
    normalizer: object = None,
    pre_tokenizer: object = None,
) -> TextCodec:
    data: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {"type": "BPE", "dropout": None, **model},
    }
    return LibraryTokenizer(data, roles)


def _roles(
    vocabulary: _Vocabulary,
    metadata: Mapping[str, MetadataValue],
    *,
    adds_bos: bool,
    bos: int | None = None,
    eos: int | None = None,
) -> Roles:
    template = metadata.get(_KEYS.CHAT_TEMPLATE, "")
    roles, further = vocabulary.roles, {vocabulary.roles[key] for key in _ENDS}
    return Roles(
        bos=bos if roles[_KEYS.BOS_ID] is None else roles[_KEYS.BOS_ID],
        # Without a number llama.cpp takes 11 for byte-level BPE, which is somebody's ordinary token.
        eos=eos if roles[_KEYS.EOS_ID] is None else roles[_KEYS.EOS_ID],
        pad=roles[_KEYS.PAD_ID],
        stops=frozenset(token for token in further if token is not None),
        adds_bos=bool(metadata.get(_KEYS.ADD_BOS, adds_bos)),
        chat_template=template if isinstance(template, str) else "",
    )


def _texts(metadata: Mapping[str, MetadataValue], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list):
        raise FormatError(f"{key} is no list of texts; fetch the file again")
    return value
