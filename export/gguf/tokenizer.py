"""This file holds the tokenizer in a GGUF file of ours: as llama.cpp reads it, and as this package gets it back.

Our own is told by llama.cpp's keys alone. Of other people's these say less than their files do, which are there, too.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from nanochat.errors import ConfigError, FormatError
from nanochat.export.gguf.container import Field, MetadataValue
from nanochat.export.gguf.splits import split_name
from nanochat.files import parse_json
from nanochat.text.codec import TextCodec
from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles, added_tokens
from nanochat.text.tokenizer import CHAT_TEMPLATE, PRE_TOKENIZER, Tokenizer

__all__ = ["new_tokenizer", "read_tokenizer", "warn_of_tokenizer"]

_KEYS = gguf.Keys.Tokenizer
_KINDS = gguf.TokenType
# Ordinary pieces hold no space, so these names are free.
_UNUSED = "<|unused {}|>"
# What a folder has beside tokenizer.json; its start, end and padding, -1 for none, before all that stop an answer.
_SETTINGS, _ROLES = "nanochat.tokenizer.settings", "nanochat.tokenizer.roles"
_SPACE = "▁"
# SentencePiece's normalizers: each space becomes a mark, and a text may get one before it.
_MARKS = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREFIX = {"type": "Prepend", "prepend": _SPACE}
# Behind all merges.
_LAST = 10**9
_LOGGER = logging.getLogger(__name__)


def new_tokenizer(tokenizer: TextCodec, rows: int) -> dict[str, Field]:
    """Keys of a tokenizer for a model whose embedding has so many rows.

    Raises
    ------
    ConfigError
        If llama.cpp has no tokenizer that does the same.
    FormatError
        If there are more tokens than rows.
    """
    if tokenizer.vocab_size > rows:
        raise FormatError(
            f"{tokenizer.vocab_size} tokens, more than the {rows} of the model: pass the model's own tokenizer"
        )
    if isinstance(tokenizer, Tokenizer):
        return _own(tokenizer, rows)
    assert isinstance(tokenizer, LibraryTokenizer)
    return _library(tokenizer, rows)


def warn_of_tokenizer(tokenizer: TextCodec) -> None:
    """Say what llama.cpp does otherwise, whatever a file says."""
    if tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9"):
        _LOGGER.warning(
            "this tokenizer composes accents with their letters (NFC), which llama.cpp does not: it gives other tokens "
            "to texts in which they stand apart"
        )


def read_tokenizer(path: Path, metadata: Mapping[str, MetadataValue], vocab_size: int) -> TextCodec:
    """What `new_tokenizer` has written, for a model of so many rows."""
    if _KEYS.HF_JSON in metadata:
        return _read_library(path, metadata)
    return _read_own(path, metadata, vocab_size)


def _own(tokenizer: Tokenizer, rows: int) -> dict[str, Field]:
    kinds = np.full(rows, _KINDS.UNUSED, np.int32)
    kinds[: tokenizer.vocab_size] = _KINDS.NORMAL
    kinds[sorted(tokenizer.special_ids)] = _KINDS.CONTROL
    # Readers take the number of tokens for the number of rows of the embedding.
    unused = map(_UNUSED.format, range(tokenizer.vocab_size, rows))
    return {
        _KEYS.MODEL: "gpt2",
        _KEYS.PRE: PRE_TOKENIZER,
        _KEYS.LIST: [*tokenizer.pieces, *unused],
        _KEYS.TOKEN_TYPE: kinds,
        _KEYS.MERGES: [" ".join(merge) for merge in tokenizer.merges],
        _KEYS.BOS_ID: np.uint32(tokenizer.bos),
        _KEYS.EOS_ID: np.uint32(tokenizer.eos),
        _KEYS.EOT_ID: np.uint32(tokenizer.end),
        _KEYS.PAD_ID: np.uint32(tokenizer.pad),
        _KEYS.ADD_BOS: np.bool_(True),
        _KEYS.CHAT_TEMPLATE: CHAT_TEMPLATE,
    }


def _read_own(path: Path, metadata: Mapping[str, MetadataValue], vocab_size: int) -> Tokenizer:
    for key, required in ((_KEYS.MODEL, "gpt2"), (_KEYS.PRE, PRE_TOKENIZER)):
        if metadata.get(key) != required:
            raise FormatError(
                f"{path}: {key} is {metadata.get(key)!r:.80}, must be {required!r}: "
                "export the model again with nanochat-ternary"
            )
    pieces, merges = metadata.get(_KEYS.LIST), metadata.get(_KEYS.MERGES, [])
    if not isinstance(pieces, list) or not isinstance(merges, list) or len(pieces) != vocab_size:
        raise FormatError(
            f"{path}: no lists of {vocab_size} tokens and of merges; fetch the file again"
        )
    pieces = list(pieces)
    while pieces and pieces[-1] == _UNUSED.format(len(pieces) - 1):
        pieces.pop()
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if len(set(pieces)) < len(pieces) or any(len(pair) != 2 for pair in pairs):
        raise FormatError(
            f"{path}: tokens that repeat, or merges that are no pairs; fetch the file again"
        )
    try:
        return Tokenizer(pieces, [(pair[0], pair[1]) for pair in pairs])
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _library(tokenizer: LibraryTokenizer, rows: int) -> dict[str, Field]:
    content = tokenizer.files()
    data = parse_json(content["tokenizer.json"], "tokenizer.json")
    model = data.get("model")
    assert isinstance(model, dict)
    vocabulary = _merged(data, model, rows)
    if len(tokenizer.opening) > 1:
        raise _no_counterpart(f"texts begin with the tokens {list(tokenizer.opening)}")
    own = (tokenizer.bos, tokenizer.eos, tokenizer.pad)
    bounds = [-1 if token is None else token for token in own]
    ends = sorted(tokenizer.stop_ids - {tokenizer.eos})
    if not tokenizer.stop_ids and tokenizer.vocab_size < rows:
        # Without a number, llama.cpp takes one that is some ordinary token.
        ends = [rows - 1]
    roles = {
        _KEYS.BOS_ID: tokenizer.opening[0] if tokenizer.opening else tokenizer.bos,
        _KEYS.EOS_ID: ends.pop(0) if tokenizer.eos is None and ends else tokenizer.eos,
        _KEYS.PAD_ID: tokenizer.pad,
        # It knows some more by their names.
        **dict(zip((_KEYS.EOT_ID, _KEYS.EOM_ID), ends, strict=False)),
    }
    return {
        **vocabulary,
        **{key: np.uint32(token) for key, token in roles.items() if token is not None},
        _KEYS.ADD_BOS: np.bool_(bool(tokenizer.opening)),
        _KEYS.ADD_EOS: np.bool_(False),
        **({_KEYS.CHAT_TEMPLATE: tokenizer.chat_template} if tokenizer.chat_template else {}),
        _KEYS.HF_JSON: content["tokenizer.json"].decode(),
        _SETTINGS: content["tokenizer_config.json"].decode(),
        _ROLES: np.array([*bounds, *sorted(tokenizer.stop_ids)], np.int32),
    }


def _read_library(path: Path, metadata: Mapping[str, MetadataValue]) -> TextCodec:
    content, settings = metadata[_KEYS.HF_JSON], metadata.get(_SETTINGS)
    template, tokens = metadata.get(_KEYS.CHAT_TEMPLATE, ""), metadata.get(_ROLES)
    if not (
        isinstance(content, str)
        and isinstance(settings, str)
        and isinstance(tokens, np.ndarray)
        and tokens.dtype == np.int32
        and len(tokens) >= 3
    ):
        raise FormatError(
            f"{path}: not all of {_KEYS.HF_JSON}, {_SETTINGS} and {_ROLES} are there as they were written; fetch the "
            "file again"
        )
    bos, eos, pad = (token if token >= 0 else None for token in tokens[:3].tolist())
    adds_bos = parse_json(settings.encode(), _SETTINGS).get("add_bos_token")
    roles = Roles(
        bos=bos,
        eos=eos,
        pad=pad,
        stops=frozenset(tokens[3:].tolist()),
        adds_bos=adds_bos if isinstance(adds_bos, bool) else None,
        chat_template=template if isinstance(template, str) else "",
    )
    files = {"tokenizer.json": content.encode(), "tokenizer_config.json": settings.encode()}
    try:
        return LibraryTokenizer(parse_json(files["tokenizer.json"], _KEYS.HF_JSON), roles, files)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _merged(
    data: Mapping[str, object],
    model: Mapping[str, object],
    rows: int,
) -> dict[str, Field]:
    """Pieces, their kinds and merges."""
    if model.get("type") != "BPE" or model.get("dropout"):
        raise _no_counterpart(f"its model is {model.get('type')!r:.40}")
    _require_found_anywhere(data)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in _merges(model)]
    prefix = _space_prefix(data)
    whole = model.get("ignore_merges") is True
    if prefix is not None and model.get("byte_fallback") is True and not whole:
        pieces, kinds = _pieces(data, model, rows, spaces=True)
        ranks = {merge.replace(" ", ""): rank for rank, merge in reversed([*enumerate(merges, 1)])}
        return {
            _KEYS.MODEL: "llama",
            _KEYS.PRE: "default",
            _KEYS.LIST: pieces,
            _KEYS.TOKEN_TYPE: kinds,
            # The best merge comes first, here by what it makes; what no merge makes, last.
            _KEYS.SCORES: np.array([-ranks.get(piece, _LAST) for piece in pieces], np.float32),
            _KEYS.ADD_PREFIX: np.bool_(prefix),
        }
    name = split_name(data, whole=whole)
    normalizer = data.get("normalizer")
    if name is None or model.get("byte_fallback") or not _is_known(normalizer):
        raise _no_counterpart("it splits or changes texts in a way for which llama.cpp has no name")
    pieces, kinds = _pieces(data, model, rows, spaces=False)
    return {
        _KEYS.MODEL: "gpt2",
        _KEYS.PRE: name,
        _KEYS.LIST: pieces,
        _KEYS.TOKEN_TYPE: kinds,
        _KEYS.MERGES: merges,
    }


def _require_found_anywhere(data: Mapping[str, object]) -> None:
    """Refuse what only some places in a text have; special tokens are found where they are asked for by name."""
    entries = data.get("added_tokens") or []
    assert isinstance(entries, list)
    for entry in entries:
        flags = [entry.get(flag) for flag in ("lstrip", "rstrip", "single_word")]
        if any(flags) and not entry["special"]:
            raise _no_counterpart(f"{entry['content']!r:.80} is found by what stands beside it")


def _merges(model: Mapping[str, object]) -> list[list[str] | str]:
    merges = model.get("merges")
    assert isinstance(merges, list)
    return merges


def _is_known(normalizer: object) -> bool:
    return normalizer in (None, {"type": "Sequence", "normalizers": []}, {"type": "NFC"})


def _space_prefix(data: Mapping[str, object]) -> bool | None:
    """Whether SentencePiece puts a space before a text; None if this is not one of its tokenizers."""
    # Nothing is left of the spaces at which this splits.
    split = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    if data.get("pre_tokenizer") not in (None, split):
        return None
    normalizer = data.get("normalizer")
    if normalizer == {"type": "Sequence", "normalizers": [_PREFIX, _MARKS]}:
        return True
    without = (_MARKS, {"type": "Sequence", "normalizers": [_MARKS]})
    return False if normalizer in without else None


def _pieces(
    data: Mapping[str, object],
    model: Mapping[str, object],
    rows: int,
    *,
    spaces: bool,
) -> tuple[list[str], np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """Text and kind of each row; with `spaces`, what users defined has spaces, as llama.cpp looks for it in a text."""
    vocabulary = model.get("vocab")
    assert isinstance(vocabulary, dict)
    pieces = [_UNUSED.format(row) for row in range(rows)]
    kinds = np.full(rows, _KINDS.UNUSED, np.int32)
    for piece, token in vocabulary.items():
        pieces[token] = piece
        is_byte = spaces and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
        kinds[token] = _KINDS.BYTE if is_byte else _KINDS.NORMAL
    for added in added_tokens(data):
        defined = added.name.replace(_SPACE, " ") if spaces and not added.special else added.name
        pieces[added.token] = defined
        kinds[added.token] = _KINDS.CONTROL if added.special else _KINDS.USER_DEFINED
    unknown = vocabulary.get(model.get("unk_token"))
    if unknown is not None:
        kinds[unknown] = _KINDS.UNKNOWN
    return pieces, kinds


def _no_counterpart(reason: str) -> ConfigError:
    return ConfigError(
        f"llama.cpp has no tokenizer that does what this model's does: {reason}; export ONNX, MLX or HF, which "
        "keep its tokenizer.json"
    )
