"""This file holds a model with all that is said of it: read once from whatever file it is in, and handed on whole."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nanochat.config import ModelConfig
from nanochat.errors import FormatError
from nanochat.files import parse_json
from nanochat.text.codec import TextCodec
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import Stored, Weights

__all__ = [
    "CARD",
    "NUM_LOGITS",
    "NUM_PAIRS",
    "NUM_SAMPLES",
    "NUM_TOKENS",
    "Bundle",
    "Golden",
    "default_generation",
    "golden_from_json",
]

# The model card's file.
CARD = "README.md"
# Of a golden record: tokens, and pairs of them; entries of the vocabulary whose logits are kept, and numbers of each
# layer's result for each token.
NUM_TOKENS = 8
NUM_PAIRS = 32
NUM_LOGITS = 64
NUM_SAMPLES = 8
# The first had no digests but those of tensors; what the second has besides.
_FORMATS = (1, 2)
_SINCE_2 = ("config", "tokenizer", "graph")
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class Golden:
    """The golden record: what the reference computes for eight tokens, and digests of what it computes that with.

    A copy of a model that runs anywhere else must agree with it; see `nanochat.proof.golden`.

    Parameters
    ----------
    tokens, greedy, rms : tuple of int or float
        The eight, spread over the vocabulary; after each the most probable next token, and the RMS of all logits.
    logits : tuple of tuples of float
        Logits after each token of 64 entries of the vocabulary, evenly spread.
    layers : tuple of tuples of float
        For each layer, in the order in which they run, eight numbers of its result for each token.
    pairs : tuple of float
        Eight numbers of what the first layer gives for the second token of each of 32 sequences of two: in one sequence
        a rounding that flips changes every later token, too; here, no other pair.
    tensors : mapping
        Digest of every tensor, by name.
    config, tokenizer : str
        Digests of the configuration, and of the tokenizer with its special tokens and chat template; empty in records
        of format 1.
    graph : str
        Digest of the nodes and constants, where the record is in a file that is a graph; else empty.
    """

    tokens: tuple[int, ...]
    greedy: tuple[int, ...]
    rms: tuple[float, ...]
    logits: tuple[tuple[float, ...], ...]
    layers: tuple[tuple[float, ...], ...]
    pairs: tuple[float, ...]
    tensors: Mapping[str, str]
    config: str = ""
    tokenizer: str = ""
    graph: str = ""

    def to_dict(self) -> dict[str, object]:
        """All of it, ready for JSON."""
        return {"format": _FORMATS[-1], **asdict(self)}

    def to_json(self) -> str:
        """One JSON object on one line."""
        return json.dumps(self.to_dict(), separators=(",", ":"))


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A model and what is said of it.

    `name` is what it is called where files show a name; no leaf of `weights` is latent; `generation` and `card` are the
    contents of its ``generation_config.json`` and ``README.md``; `generation_from` says where the first stands, and is
    empty if nobody has said how the model be used; `licence` is the SPDX identifier of the weights'.
    `golden` is what its files say that it computes, and `origin` where they come from, in a word or two: both are empty
    of a model that was made here. `graph` is the file that computes it in a runtime of whole graphs, if it was read
    from one.
    """

    name: str
    config: ModelConfig
    weights: Weights[Stored]
    tokenizer: TextCodec
    generation: Mapping[str, object]
    generation_from: str = ""
    licence: str = "unknown"
    card: bytes = b""
    golden: Golden | None = None
    origin: str = ""
    graph: Path | None = None


def default_generation(tokenizer: TextCodec) -> dict[str, object]:
    """What ``generation_config.json`` says of a model for which nothing else was chosen."""
    ends = sorted(tokenizer.stop_ids)
    if isinstance(tokenizer, Tokenizer):
        # All of its special tokens end a text; these are those that a model is trained to write.
        ends = [tokenizer.eos, tokenizer.end]
    tokens = {"bos_token_id": tokenizer.bos, "eos_token_id": ends, "pad_token_id": tokenizer.pad}
    known = {key: token for key, token in tokens.items() if token is not None}
    return {**known, "do_sample": False}


def golden_from_json(value: str | Mapping[str, object], name: str) -> Golden:
    """Undo `Golden.to_json` or `Golden.to_dict`; `name` is where it comes from, for the error."""
    fields = parse_json(value.encode(errors="replace"), name) if isinstance(value, str) else value
    version = fields.get("format")
    if version not in _FORMATS:
        raise FormatError(
            f"{name}: no golden record of format {' or '.join(map(str, _FORMATS))}; export the model again"
        )
    try:
        return Golden(
            tokens=_integers(fields["tokens"]),
            greedy=_integers(fields["greedy"]),
            rms=_floats(fields["rms"], NUM_TOKENS),
            logits=_rows(fields["logits"], NUM_TOKENS, NUM_LOGITS),
            layers=_rows(fields["layers"], None, NUM_TOKENS * NUM_SAMPLES),
            pairs=_floats(fields["pairs"], NUM_PAIRS * NUM_SAMPLES),
            tensors=_digests(fields["tensors"]),
            **{} if version == 1 else {name: _digest(fields[name]) for name in _SINCE_2},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{name}: the golden record is damaged ({error!r:.80}); export the model again"
        ) from error


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != NUM_TOKENS:
        raise TypeError(f"{value!r:.40} is no list of {NUM_TOKENS}")
    if any(type(number) is not int for number in value):
        raise TypeError(f"{value!r:.40} are no whole numbers")
    return tuple(value)


def _floats(value: object, count: int) -> tuple[float, ...]:
    (row,) = _rows([value], 1, count)
    return row


def _rows(value: object, count: int | None, length: int) -> tuple[tuple[float, ...], ...]:
    if not isinstance(value, list) or not value:
        raise TypeError(f"{value!r:.40} is no list of rows")
    rows = np.array(value, np.float64)
    if rows.shape != (count or len(value), length):
        raise TypeError(f"numbers of shape {rows.shape}, must be {(count or len(value), length)}")
    # No backend computes others, and nothing can be compared with them.
    if not (np.abs(rows) <= _LARGEST).all():
        raise ValueError("a number that is no float32")
    return tuple(map(tuple, rows.tolist()))


def _digest(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no digest")
    return value


def _digests(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("tensors are no digests by name")
    return {str(name): _digest(digest) for name, digest in value.items()}
