"""This file holds the tokenizer: byte-level BPE behind seven special tokens.

*Token* is an id, *piece* the text that stands for it in ``tokenizer.json``: one character of the
GPT-2 byte alphabet for each of its bytes. The specials have the first ids, so that they are the same
numbers in every vocabulary. Text is data: a special's name inside it is spelled in ordinary pieces,
so no prompt can forge the end of a turn.

The pre-tokenizer is GPT-2's regular expression, which stock llama.cpp knows as `PRE_TOKENIZER`.
"""

import codecs
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from nanochat.errors import FormatError, InputError
from nanochat.files import atomic_directory, parse_json, read_bytes
from nanochat.text.codec import BYTES, MAX_FILE_BYTES, TextCodec, call, check_text
from nanochat.text.roles import starting

__all__ = ["CHAT_TEMPLATE", "PRE_TOKENIZER", "SPECIALS", "StreamDecoder", "Tokenizer"]

SPECIALS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
PRE_TOKENIZER = "gpt-2"

# llama.cpp without --jinja guesses the format from substrings: "<|assistant|>" next to "<|end|>" is
# taken for Phi-3, which adds newlines (src/llama-chat.cpp, commit 0192c12). Spelled apart, the name
# makes it ask for --jinja instead.
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{- raise_exception('role must be system, user or assistant, not ' + message['role']) }}"
    "{%- endif %}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|' + 'assistant' + '|>' }}{%- endif %}"
)

_MIN_VOCABULARY = len(SPECIALS) + 256
_LOGGER = logging.getLogger(__name__)


class Tokenizer:
    """Text to token ids and back, without loss for any text and any bytes.

    Parameters
    ----------
    pieces : list of str
        Piece of each token id: `SPECIALS` first, all 256 characters of the byte alphabet among
        the rest.
    merges : list of (str, str)
        Pairs of pieces in the order in which they merge.

    Attributes
    ----------
    bos, eos, pad, user, assistant, system, end : int
        Tokens of the specials: start and end of a document, padding, start of a turn of each role, end of a turn.
    special_ids, stop_ids : frozenset of int
        All of them: none is text, so none can be part of an answer.
    opening : tuple of int
        `bos`, which stands before every text.
    specials : mapping
        All of them, by name.
    chat_template : str
        `CHAT_TEMPLATE`.
    num_bytes : int64 array, shape (vocab_size,)
        Bytes of text per token, 0 for specials; read-only.

    Examples
    --------
    >>> tokenizer = Tokenizer.train(["to be or not to be"], vocab_size=264)
    >>> tokenizer.decode(tokenizer.encode("to be <|end|>"))
    'to be <|end|>'
    >>> tokenizer.end in tokenizer.encode("to be <|end|>")
    False
    """

    bos, eos, pad, user, assistant, system, end = range(len(SPECIALS))
    special_ids = stop_ids = frozenset(range(len(SPECIALS)))
    opening: tuple[int, ...] = (bos,)
    specials: Mapping[str, int] = MappingProxyType({name: i for i, name in enumerate(SPECIALS)})
    chat_template = CHAT_TEMPLATE

    def __init__(self, pieces: list[str], merges: list[tuple[str, str]]) -> None:
        self.pieces = tuple(pieces)
        self.merges = tuple(merges)
        _check_pieces(self.pieces)
        ids = {piece: token for token, piece in enumerate(pieces)}
        self._byte_ids = [ids[character] for character in BYTES]
        self._token_bytes = [b""] * len(SPECIALS)
        self._token_bytes += [bytes(map(BYTES.__getitem__, p)) for p in pieces[len(SPECIALS) :]]
        self.num_bytes: NDArray[np.int64] = np.array([len(b) for b in self._token_bytes], np.int64)
        self.num_bytes.setflags(write=False)
        try:
            self._bpe = _library_tokenizer(models.BPE(vocab=ids, merges=list(merges)))
        # The library raises nothing more specific.
        except Exception as error:
            raise FormatError(
                f"the merges do not fit the vocabulary ({error}): it must hold both pieces of a "
                "merge and their union; copy the file again"
            ) from error
        # The library reads this flag as: the text may not produce special tokens.
        self._bpe.encode_special_tokens = True

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn merges from `texts` until there are `vocab_size` tokens.

        The result depends on the texts, not on their order. Texts without enough repeated pairs
        yield a smaller vocabulary and a warning in the log.
        """
        if vocab_size < _MIN_VOCABULARY:
            raise InputError(
                f"cannot train a vocabulary of {vocab_size} tokens: {len(SPECIALS)} specials and "
                f"256 bytes come first; pass vocab_size={_MIN_VOCABULARY} or more"
            )
        if isinstance(texts, str):
            raise InputError("texts is one string: pass a list of strings")
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=list(SPECIALS),
            initial_alphabet=sorted(BYTES),
        )
        bpe = _library_tokenizer(models.BPE())
        bpe.train_from_iterator(map(check_text, texts), trainer=trainer)
        model = json.loads(bpe.to_str())["model"]
        pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if len(pieces) < vocab_size:
            _LOGGER.warning(
                "the texts repeat too little for %d tokens: the vocabulary has %d",
                vocab_size,
                len(pieces),
            )
        return cls(pieces, [(left, right) for left, right in model["merges"]])

    @classmethod
    def load(cls, directory: str | Path) -> "Tokenizer":
        """Read ``tokenizer.json`` from `directory`."""
        path = Path(directory) / "tokenizer.json"
        data = parse_json(read_bytes(path, limit=MAX_FILE_BYTES), str(path))
        try:
            return cls.from_json(data)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> "Tokenizer":
        """The tokenizer of a ``tokenizer.json`` that has been parsed."""
        return cls(*_parse(data))

    def save(self, directory: str | Path) -> None:
        """Write `files`, all or none."""
        with atomic_directory(Path(directory)) as new:
            for name, content in self.files().items():
                (new / name).write_bytes(content)

    def files(self) -> dict[str, bytes]:
        """The content of ``tokenizer.json`` and ``tokenizer_config.json``, by name."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": SPECIALS[self.bos],
            "eos_token": SPECIALS[self.eos],
            "pad_token": SPECIALS[self.pad],
            "additional_special_tokens": list(SPECIALS[self.user :]),
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        # Other runtimes begin a text as a file says; `encode` does not.
        start = {SPECIALS[self.bos]: self.bos}
        data = json.loads(self._bpe.to_str()) | {"post_processor": starting(start)}
        return {
            "tokenizer.json": json.dumps(data, indent=2, ensure_ascii=False).encode(),
            "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
        }

    @property
    def vocab_size(self) -> int:
        """Number of tokens, specials included."""
        return len(self.pieces)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the pieces and merges: equal for tokenizers that encode alike."""
        return hashlib.sha256(json.dumps([self.pieces, self.merges]).encode()).hexdigest()

    def __len__(self) -> int:
        return self.vocab_size

    def __call__(self, text: str | Sequence[str]) -> dict[str, object]:
        return call(self, text)

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the tokens of `text`, without a leading ``<|bos|>``.

        Parameters
        ----------
        text : str
            Any text that has a UTF-8 form.
        specials : bool
            True turns the names in `SPECIALS` into their tokens. For text of your own only.
        """
        if not specials:
            return self._bpe.encode(check_text(text), add_special_tokens=False).ids
        tokens: list[int] = []
        for part in _SPECIAL_PATTERN.split(check_text(text)):
            tokens += [SPECIALS.index(part)] if part in SPECIALS else self.encode(part)
        return tokens

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the tokens of each text, on all cores; texts are data as in :meth:`encode`."""
        encodings = self._bpe.encode_batch_fast(
            list(map(check_text, texts)), add_special_tokens=False
        )
        return [encoding.ids for encoding in encodings]

    def encode_bytes(self, data: bytes) -> list[int]:
        """Return the tokens of `data`: as :meth:`encode` where it is UTF-8, else one per byte."""
        tokens: list[int] = []
        # Strict UTF-8 has no surrogates, so every surrogate here is an escaped byte.
        for index, part in enumerate(_ESCAPED.split(data.decode("utf-8", "surrogateescape"))):
            if index % 2:
                tokens += [self._byte_ids[b] for b in part.encode("utf-8", "surrogateescape")]
            else:
                tokens += self.encode(part)
        return tokens

    def decode(self, tokens: Iterable[int], *, skip_specials: bool = True) -> str:
        """Return the text of `tokens`, with U+FFFD for bytes that are not UTF-8."""
        if skip_specials:
            return self.decode_bytes(tokens).decode("utf-8", "replace")
        return b"".join(
            SPECIALS[token].encode() if token in self.special_ids else self.token_bytes(token)
            for token in tokens
        ).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Iterable[int]) -> bytes:
        """Return the bytes of `tokens`; specials have none."""
        return b"".join(map(self.token_bytes, tokens))

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of one token; a special has none."""
        if not 0 <= token < len(self._token_bytes):
            raise InputError(
                f"token {token} is outside this vocabulary of {self.vocab_size} tokens: "
                "decode with the tokenizer that encoded the text"
            )
        return self._token_bytes[token]


class StreamDecoder:
    """Text of a growing sequence of tokens, handed out at character boundaries only.

    The parts add up to what ``tokenizer.decode`` returns for the whole sequence, behind the space that some tokenizers
    put before a text and take off again.

    Examples
    --------
    >>> tokenizer = Tokenizer.train(["a"], vocab_size=263)
    >>> decoder = StreamDecoder(tokenizer)
    >>> [decoder.push(token) for token in tokenizer.encode("né")]
    ['n', '', 'é']
    """

    def __init__(self, tokenizer: TextCodec) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Return the characters that `token` completes, often none; specials add nothing."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    @property
    def is_inside_character(self) -> bool:
        """Whether the tokens until now end with some bytes of a character."""
        return bool(self._utf8.getstate()[0])

    def flush(self) -> str:
        """Return U+FFFD if the sequence ended inside a character, and start afresh."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


_SPECIAL_PATTERN = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")
_ESCAPED = re.compile("([\udc80-\udcff]+)")


def _library_tokenizer(model: models.BPE) -> tokenizers.Tokenizer:
    bpe = tokenizers.Tokenizer(model)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(list(SPECIALS))
    return bpe


def _check_pieces(pieces: tuple[str, ...]) -> None:
    if pieces[: len(SPECIALS)] != SPECIALS:
        raise FormatError(
            f"the first pieces are {pieces[: len(SPECIALS)]}, must be {SPECIALS}: "
            "use a tokenizer that this package trained"
        )
    ordinary = pieces[len(SPECIALS) :]
    for piece in ordinary:
        if not piece or any(character not in BYTES for character in piece):
            raise FormatError(
                f"piece {piece!r:.80} is not in the byte alphabet of GPT-2: use a byte-level vocabulary"
            )
    missing = set(BYTES).difference(ordinary)
    if missing:
        raise FormatError(
            f"no token for byte {BYTES[min(missing)]:#04x}: all 256 bytes need one; "
            "use a byte-level vocabulary"
        )


def _parse(data: Mapping[str, object]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the pieces and merges of a parsed ``tokenizer.json``."""
    model = data.get("model")
    if not isinstance(model, dict):
        raise FormatError("no object 'model': use a tokenizer that this package trained")
    split = data.get("pre_tokenizer")
    split = split if isinstance(split, dict) else {}
    after = data.get("post_processor")
    # What would make another reader of the file split or merge differently from `_library_tokenizer`.
    settings = {
        "model.type": (model.get("type"), "BPE"),
        "model.dropout": (model.get("dropout") or None, None),
        "model.ignore_merges": (model.get("ignore_merges", False), False),
        "model.continuing_subword_prefix": (model.get("continuing_subword_prefix") or None, None),
        "model.end_of_word_suffix": (model.get("end_of_word_suffix") or None, None),
        "normalizer": (data.get("normalizer"), None),
        "post_processor": (None if _begins_texts(after) else after, None),
        "pre_tokenizer.type": (split.get("type"), "ByteLevel"),
        "pre_tokenizer.add_prefix_space": (split.get("add_prefix_space"), False),
        "pre_tokenizer.use_regex": (split.get("use_regex", True), True),
    }
    for name, (found, required) in settings.items():
        if found != required:
            raise FormatError(
                f"{name} is {found!r:.80}, must be {required!r}: "
                "use a tokenizer that this package trained"
            )
    return _parse_vocabulary(model.get("vocab")), _parse_merges(model.get("merges"))


def _begins_texts(after: object) -> bool:
    """Whether a post-processor adds the start, or leaves it to the runtime: either way our models' texts have it."""
    match after:
        case None:
            return True
        case {"type": "TemplateProcessing", "single": parts}:
            starts: tuple[dict[str, int], ...] = ({}, {SPECIALS[Tokenizer.bos]: Tokenizer.bos})
            return parts in [starting(start)["single"] for start in starts]
    return False


def _parse_vocabulary(vocabulary: object) -> list[str]:
    if not isinstance(vocabulary, dict):
        raise FormatError("no object 'vocab' in the model: copy the file again")
    for piece, token in vocabulary.items():
        if type(token) is not int or not 0 <= token < len(vocabulary):
            raise FormatError(
                f"piece {piece!r:.80} has id {token!r:.40}: {len(vocabulary)} pieces need the ids "
                f"0 to {len(vocabulary) - 1}; copy the file again"
            )
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    for token, piece in enumerate(pieces):
        if vocabulary[piece] != token:
            raise FormatError(
                f"id {vocabulary[piece]} of piece {piece!r:.80} is used twice: ids must be distinct; "
                "copy the file again"
            )
    return pieces


def _parse_merges(merges: object) -> list[tuple[str, str]]:
    if not isinstance(merges, list):
        raise FormatError("no list 'merges' in the model: copy the file again")
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        # Older versions of the library write "left right".
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)
        ):
            raise FormatError(f"merge {merge!r:.80} is not a pair of pieces: copy the file again")
        pairs.append((pair[0], pair[1]))
    return pairs
