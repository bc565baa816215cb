"""This file holds the model as its users meet it: `from_pretrained`, then generate, chat, score, save.

Everything else is below: a `Model` joins a configuration, stored weights, a tokenizer and a backend, once.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from nanochat import backends, checkpoint
from nanochat.chat import Message, render
from nanochat.config import ModelConfig
from nanochat.cost import cost, leaf_bytes
from nanochat.errors import ConfigError, ContextLengthError, InputError
from nanochat.files import exists, read_bytes
from nanochat.generation import Engine, Options, Piece, check_ids, generate
from nanochat.init import freeze
from nanochat.ops import Ops, Storage
from nanochat.shapes import shapes
from nanochat.tokenizer import Tokenizer
from nanochat.weights import LeafKind, Spec, Stored, Weights, named_leaves

__all__ = [
    "Model",
    "Score",
    "TensorClass",
    "from_pretrained",
    "load_parts",
    "save_model",
    "tensor_classes",
]

_LOGGER = logging.getLogger(__name__)
_CARD = "README.md"
_MAX_CARD_BYTES = 2**20
# Rows of logits that are turned into probabilities at once, which bounds the float64 copy.
_SCORED_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Score:
    """How probable a model finds a text.

    Parameters
    ----------
    nats : float
        Minus the natural logarithm of the text's probability after ``<|bos|>``.
    tokens, bytes : int
        Length of the text.

    Examples
    --------
    >>> score = Score(nats=32.0 * math.log(2), tokens=4, bytes=16)
    >>> score.bits_per_byte, round(score.nats_per_token, 3)
    (2.0, 5.545)
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy; depends on the tokenizer."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits to code one byte of the text; comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True, kw_only=True)
class TensorClass:
    """The tensors that stand in the same place of every layer.

    Parameters
    ----------
    name : str
        Their path without the layer's number, such as ``layers.mixer.q``.
    kind : {"ternary", "int8", "dense"}
        What they are stored as.
    format : str
        The same in words.
    tensors, parameters, bytes : int
        How many there are, and what they hold together.
    """

    name: str
    kind: LeafKind
    format: str
    tensors: int
    parameters: int
    bytes: int


class Model:
    """A language model, ready to run.

    Parameters
    ----------
    config : ModelConfig
        What `weights` were made for.
    weights : Weights[Stored]
        Latent leaves are rounded, as for a checkpoint.
    tokenizer : Tokenizer
        The one that the model was trained with.
    backend : str or Ops
        A name for `nanochat.backends.choose`, or a backend of one's own.
    name : str
        For messages.
    kv_cache : {"float32", "float16", "int8"}
        What keys and values are kept in while text is generated. The narrow ones take a half and about a quarter of
        the memory, and less time where the context is long; they round, see `nanochat.ops.Slot`.
    num_threads : int, optional
        See `nanochat.backends.get`; for a backend that is chosen by name.

    Attributes
    ----------
    config, weights, tokenizer, name
        As given.
    engine : Engine
        The prepared weights on the backend, for callers that bring their own tokens.

    Raises
    ------
    BackendError
        If the backend is unknown or cannot run here, or cannot keep keys and values as asked.
    ConfigError
        If the tokenizer has more tokens than the model.
    InputError
        If `kv_cache` or `num_threads` is none of its values.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights[Stored],
        tokenizer: Tokenizer,
        *,
        backend: str | Ops[Any, Any, Any] = "auto",
        name: str = "model",
        kv_cache: Storage = "float32",
        num_threads: int | None = None,
    ) -> None:
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                f"{name}: the tokenizer has {tokenizer.vocab_size} tokens but the model only {config.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )
        self.config = config
        self.weights = freeze(weights)
        self.tokenizer = tokenizer
        self.name = name
        if isinstance(backend, str):
            self._backend, self._reason = backends.choose(backend)
            ops = backends.get(self._backend, num_threads=num_threads)
        else:
            self._backend, self._reason = type(backend).__name__, "given"
            ops = backend
        self.engine = Engine(config, ops.prepare(self.weights), ops, kv_cache=kv_cache)
        self._card = b""
        self._generation: Mapping[str, object] = {
            "bos_token_id": tokenizer.bos,
            "eos_token_id": [tokenizer.eos, tokenizer.end],
            "pad_token_id": tokenizer.pad,
            "do_sample": False,
        }
        _LOGGER.info("%s runs on %s: %s", name, self._backend, self._reason)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        backend: str | Ops[Any, Any, Any] = "auto",
        kv_cache: Storage = "float32",
        num_threads: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> "Model":
        """Load a model by name, fetching it if it is not here yet.

        Parameters
        ----------
        name : str or Path
            A directory, a ``.gguf`` file, a name of the catalog such as ``nanochat-tiny``, or ``owner/name`` on the
            Hugging Face Hub. What exists on disk comes first.
        backend : str or Ops
            See `Model`.
        kv_cache : {"float32", "float16", "int8"}
            See `Model`.
        num_threads : int, optional
            See `Model`.
        revision, token, cache_dir, local_files_only, force_download
            See `nanochat.zoo.hub.resolve`.

        Raises
        ------
        ModelNotFoundError
            If nothing has that name.
        FormatError
            If its files are damaged.
        BackendError
            If the backend is unknown or cannot run here.
        """
        # Late, because the Hub's client takes longer to import than everything above.
        from nanochat.zoo.hub import resolve

        path = resolve(
            str(name),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        config, weights, tokenizer = load_parts(path)
        model = cls(
            config,
            weights,
            tokenizer,
            backend=backend,
            name=str(name),
            kv_cache=kv_cache,
            num_threads=num_threads,
        )
        if path.suffix == ".gguf":
            return model
        model._generation = checkpoint.load_generation(path) or model._generation
        if exists(path / _CARD):
            model._card = read_bytes(path / _CARD, limit=_MAX_CARD_BYTES)
        return model

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model directory: weights, configuration, tokenizer, and the card if there was one.

        Raises
        ------
        SaveError
            If a file cannot be written; the model that was there is untouched.
        """
        save_model(
            directory,
            self.config,
            self.weights,
            self.tokenizer,
            generation=self._generation,
            card=self._card,
        )

    @overload
    def generate(self, prompt: str, **options: Unpack[Options]) -> str: ...

    @overload
    def generate(self, prompt: list[str], **options: Unpack[Options]) -> list[str]: ...

    def generate(self, prompt: str | list[str], **options: Unpack[Options]) -> str | list[str]:
        """Continue a text, or each text of a list, and return what follows it.

        Parameters
        ----------
        prompt : str or list of str
            Special tokens' names in it are ordinary text.
        **options : Options
            `max_tokens`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `stop` and `seed`; see
            `nanochat.generation.Options`. Without any, the most probable tokens are taken.

        Raises
        ------
        ContextLengthError
            If the prompt and `max_tokens` together exceed the context.
        InputError
            If a prompt is empty or no text, or an option is out of range.
        """
        prompts = prompt if isinstance(prompt, list) else [prompt]
        texts = [""] * len(prompts)
        for piece in self.pieces([self.encode_prompt(text) for text in prompts], **options):
            texts[piece.row] += piece.text
        return texts if isinstance(prompt, list) else texts[0]

    def stream(self, prompt: str, **options: Unpack[Options]) -> Iterator[str]:
        """Yield what follows a text as it is generated; the parts add up to `generate`'s result."""
        return _texts(self.pieces([self.encode_prompt(prompt)], **options))

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> str:
        """Return the assistant's answer to a conversation.

        Parameters
        ----------
        messages : sequence of Message
            ``{"role": "user", "content": "..."}``; roles are system, user and assistant.
        **options : Options
            As for `generate`.

        Raises
        ------
        ContextLengthError
            If the conversation and `max_tokens` together exceed the context.
        InputError
            If a message is malformed, or an option out of range.
        """
        return "".join(self.stream_chat(messages, **options))

    def stream_chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Iterator[str]:
        """Yield the assistant's answer as it is generated; see `chat`."""
        return _texts(self.pieces([render(messages, self.tokenizer)], **options))

    def pieces(
        self, prompts: Sequence[Sequence[int]], **options: Unpack[Options]
    ) -> Iterator[Piece]:
        """Continue prompts that are tokens already; see `nanochat.generation.generate`."""
        return generate(self.engine, self.tokenizer, prompts, **options)

    def encode_prompt(self, text: str) -> list[int]:
        """Return ``<|bos|>`` and the tokens of a text.

        Raises
        ------
        InputError
            If the text is empty or not a string.
        """
        tokens = self.tokenizer.encode(text)
        if not tokens:
            raise InputError(
                'the prompt is empty: pass some text; "\\n" lets the model begin freely'
            )
        return [self.tokenizer.bos, *tokens]

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of the next token after every token of `ids`, shape (T, vocabulary).

        Raises
        ------
        ContextLengthError
            If there are more tokens than the context holds.
        InputError
            If there is none, or one is not in the vocabulary.
        """
        check_ids(ids, self.config)
        if len(ids) > self.config.context_length:
            raise ContextLengthError(
                f"{len(ids)} tokens do not fit the model's context of {self.config.context_length}: shorten them"
            )
        return self.engine.logits(ids)

    def score(self, text: str) -> Score:
        """Measure how well the model predicts a text that follows ``<|bos|>``.

        A text longer than the context is read in windows that overlap by half: every token is scored once, after at
        least half a context of the tokens before it, or all of them.

        Raises
        ------
        InputError
            If the text is empty or not a string.
        """
        ids = self.encode_prompt(text)
        context = self.config.context_length
        num_targets = len(ids) - 1
        nats, start, scored = 0.0, 0, 0
        while scored < num_targets:
            end = min(start + context, num_targets)
            logits = self.engine.logits(ids[start:end])[scored - start :]
            nats += _cross_entropy(logits, ids[scored + 1 : end + 1])
            scored, start = end, end - context // 2
        return Score(nats=nats, tokens=num_targets, bytes=len(text.encode()))

    def describe(self) -> dict[str, object]:
        """What runs, where and why, and how its tensors are stored; ready for JSON."""
        classes = tensor_classes(self.config)
        costs = cost(self.config, context=1, kv_cache=self.engine.kv_cache)
        return {
            "name": self.name,
            "backend": self._backend,
            "backend_reason": self._reason,
            "device": _device(self.engine.ops),
            "parameters": sum(c.parameters for c in classes),
            "bytes": sum(c.bytes for c in classes),
            "context_length": self.config.context_length,
            "kv_cache": self.engine.kv_cache,
            "kv_bytes_per_token": costs.kv_bytes_per_token,
            "vocab_size": self.config.vocab_size,
            "tensors": [vars(c) for c in classes],
        }


from_pretrained = Model.from_pretrained


def load_parts(path: Path) -> tuple[ModelConfig, Weights[Stored], Tokenizer]:
    """Read a model directory or a ``.gguf`` file without preparing it for a backend.

    Raises
    ------
    FormatError
        If a file is damaged.
    ModelNotFoundError
        If there is none.
    """
    if path.suffix == ".gguf":
        # Late, because the exporters need packages that running a model directory does not.
        from nanochat.export.gguf import load_gguf

        return load_gguf(path)
    config, weights = checkpoint.load(path)
    return config, weights, Tokenizer.load(path)


def save_model(
    directory: str | Path,
    config: ModelConfig,
    weights: Weights[Stored],
    tokenizer: Tokenizer,
    *,
    generation: Mapping[str, object],
    card: bytes = b"",
) -> None:
    """Write a model directory, complete or not at all.

    Parameters
    ----------
    directory : str or Path
        Made if it is not there; the model that it holds is replaced.
    config, weights, tokenizer
        See `Model`; without latent leaves.
    generation : mapping
        Content of ``generation_config.json``.
    card : bytes
        Content of ``README.md``; empty leaves that file as it is.

    Raises
    ------
    SaveError
        If a file cannot be written; the model that was there is untouched.
    """
    others = {**tokenizer.files(), _CARD: card} if card else tokenizer.files()
    checkpoint.save(directory, config, weights, generation=generation, others=others)


def tensor_classes(config: ModelConfig) -> list[TensorClass]:
    """What a model of this configuration stores, by the place of its tensors, in the order of the weights."""
    groups: dict[tuple[str, str], list[Spec]] = {}
    for path, spec in named_leaves(shapes(config)):
        name = ".".join(part for part in path.split(".") if not part.isdigit())
        groups.setdefault((name, _format(spec)), []).append(spec)
    return [
        TensorClass(
            name=name,
            kind=specs[0].kind,
            format=form,
            tensors=len(specs),
            parameters=sum(math.prod(spec.shape) for spec in specs),
            bytes=sum(leaf_bytes(spec) for spec in specs),
        )
        for (name, form), specs in groups.items()
    ]


def _format(spec: Spec) -> str:
    if spec.kind == "dense":
        return spec.dtype
    if spec.kind == "int8":
        return "int8, a float16 scale per row"
    return f"ternary, 2 bits, a float16 scale per {spec.weight_block} columns"


def _device(ops: Ops[Any, Any, Any]) -> str:
    return str(getattr(ops, "device", "cpu"))


def _texts(pieces: Iterator[Piece]) -> Iterator[str]:
    return (piece.text for piece in pieces if piece.text)


def _cross_entropy(logits: NDArray[np.float32], targets: Sequence[int]) -> float:
    """Minus the sum of the targets' log-probabilities, in nats."""
    nats = 0.0
    for start in range(0, len(targets), _SCORED_ROWS):
        rows = logits[start : start + _SCORED_ROWS].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        chosen = rows[np.arange(len(rows)), list(targets[start : start + _SCORED_ROWS])]
        nats += float((np.log(np.exp(rows).sum(axis=1)) - chosen).sum())
    return nats
