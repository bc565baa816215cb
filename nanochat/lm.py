"""This file holds the model as its users meet it: `from_pretrained`, then generate, chat, score, save.

Everything else is below: a `Model` joins a configuration, stored weights, a tokenizer and a backend, once.
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from nanochat import backends
from nanochat.backends.describe import describe, faster, summary
from nanochat.bundle import Bundle, default_generation
from nanochat.config import ModelConfig
from nanochat.cost import cost, tensor_classes
from nanochat.errors import ConfigError, ContextLengthError, InputError
from nanochat.export.directory import save_model
from nanochat.export.format import Format, ModelFiles
from nanochat.export.formats import detect
from nanochat.export.run import choose_backend, start
from nanochat.export.verify import require_proven
from nanochat.generation.cache import CacheOwner
from nanochat.generation.engine import Engine, Runner, check_ids
from nanochat.generation.options import GenerationOptions
from nanochat.generation.prompts import Prompts, read_prompts
from nanochat.generation.scoring import Score, score, scored_ids
from nanochat.generation.stated import stated_options
from nanochat.generation.writer import Writer
from nanochat.init import freeze
from nanochat.memory import require_free
from nanochat.ops import Ops, Storage
from nanochat.proof.golden import config_digest, tensor_digests
from nanochat.proof.tables import RoundedTables, measured, with_int8_tables
from nanochat.publish.options import PushOptions, with_options
from nanochat.text.codec import TextCodec
from nanochat.weights import Stored, Weights

if TYPE_CHECKING:
    from nanochat.text.front_matter import Usage
    from nanochat.zoo.candidates import Location

__all__ = ["Model", "from_pretrained"]

_LOGGER = logging.getLogger(__name__)


class Model(Writer):
    """A language model, ready to run.

    Parameters
    ----------
    config : ModelConfig
        What `weights` were made for.
    weights : Weights[Stored]
        Latent leaves are rounded, as for a checkpoint.
    tokenizer : TextCodec
        The one that the model was trained with.
    backend : str, Ops or Runner
        A name for `nanochat.backends.choose`, a backend of one's own, or the same model at work somewhere else.
    kv_cache : {"float32", "float16", "int8", "int4"}
        What keys and values are kept in while text is generated. The narrow ones take a half, about a quarter
        and a seventh of the memory, and less time where the context is long; they round, see `nanochat.ops.Slot`.
    num_threads : int, optional
        See `nanochat.backends.get`; for a backend that is chosen by name.
    licence : str
        SPDX identifier of the weights' licence, or "unknown".

    Attributes
    ----------
    engine : Runner
        The model at work, for callers that bring their own tokens.

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
        tokenizer: TextCodec,
        *,
        backend: str | Ops[Any, Any, Any] | Runner[Any] = "auto",
        name: str = "model",
        kv_cache: Storage = "float32",
        num_threads: int | None = None,
        licence: str = "unknown",
    ) -> None:
        bundle = Bundle(
            name=Path(name).name or "model",
            config=config,
            weights=freeze(weights),
            tokenizer=tokenizer,
            generation=default_generation(tokenizer),
            licence=licence,
        )
        self._start(bundle, backend, name=name, kv_cache=kv_cache, num_threads=num_threads)

    # What was asked to be rounded, and what that changed.
    _rounded: RoundedTables | None = None

    def _start(
        self,
        bundle: Bundle,
        backend: str | Ops[Any, Any, Any] | Runner[Any],
        *,
        name: str,
        kv_cache: Storage,
        num_threads: int | None,
    ) -> None:
        config, tokenizer = bundle.config, bundle.tokenizer
        if tokenizer.vocab_size > config.vocab_size:
            raise ConfigError(
                f"{name}: the tokenizer has {tokenizer.vocab_size} tokens but the model only {config.vocab_size}: "
                "use the tokenizer that the model was trained with"
            )
        self.config, self.weights, self.tokenizer = config, bundle.weights, tokenizer
        self.name, self.licence = name, bundle.licence
        self._bundle = bundle
        self.engine: Runner[Any]
        if isinstance(backend, str):
            chosen, self._reason = choose_backend(bundle, backend)
            self.engine = start(
                bundle, chosen, name=name, kv_cache=kv_cache, num_threads=num_threads
            )
        elif isinstance(backend, Runner):
            self.engine, self._reason = backend, "a graph of its own"
        else:
            prepared = backend.prepare(bundle.weights)
            self.engine = Engine(config, prepared, backend, kv_cache=kv_cache)
            self._reason = "given"
        _LOGGER.info("%s", summary(name, self._reason, describe(self.engine)))

    def __repr__(self) -> str:
        if isinstance(self.engine, _Closed):
            return f"Model({self.name!r}, closed)"
        parameters = sum(c.parameters for c in tensor_classes(self.config))
        return (
            f"Model({self.name!r}, {parameters / 1e6:.1f}M parameters, context of {self.config.context_length} tokens, "
            f"{self.engine.name} on {self.engine.device})"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a Model cannot be pickled, for it holds compiled code and threads: pass the name {self.name!r}, and call "
            "from_pretrained in the other process"
        )

    def close(self) -> None:
        """Give the memory of the weights back; the model can do nothing after that."""
        nothing: Any = _Closed(self.name)
        self.engine = self.weights = nothing
        self._bundle = dataclasses.replace(self._bundle, weights=nothing)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        backend: str | Ops[Any, Any, Any] | Runner[Any] = "auto",
        name: str | None = None,
        kv_cache: Storage = "float32",
        tables: Literal["int8"] | None = None,
        num_threads: int | None = None,
    ) -> "Model":
        """A model at work, of what was read from its files.

        "auto" takes "onnx" for a bundle that was read from a graph. `name` is for messages; absent is the bundle's.
        """
        model, before, name = cls.__new__(cls), bundle, name or bundle.name
        if tables is not None:
            bundle = with_int8_tables(bundle, tables)
        model._start(bundle, backend, name=name, kv_cache=kv_cache, num_threads=num_threads)
        if tables is not None:
            model._rounded = measured(model.engine, before, bundle)
        return model

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        backend: str | Ops[Any, Any, Any] | Runner[Any] = "auto",
        kv_cache: Storage = "float32",
        tables: Literal["int8"] | None = None,
        num_threads: int | None = None,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        unpinned: bool = False,
        verify: bool = False,
    ) -> "Model":
        """Load a model by name, fetching it if it is not here yet.

        Parameters
        ----------
        name : str or Path
            A directory, a ``.gguf`` or ``.onnx`` file, a name of the catalog such as ``nanochat-tiny``, or
            ``owner/name`` on the Hugging Face Hub, perhaps with ``@revision`` and ``:part``; see
            `nanochat.zoo.hub.locate`. What exists on disk comes first.
        backend : str, Ops or Runner
            See `Model`. "onnx" is ONNX Runtime, which runs a graph; what is no ``.onnx`` file is exported to one first.
            "auto" takes it for such a file, and for nothing else; ``NANOCHAT_BACKEND`` replaces "auto" here, too.
        kv_cache, num_threads
            See `Model`.
        tables : {"int8"}, optional
            Round embedding and head to 8 bits, one scale for each row, and say what that changes; see
            `nanochat.proof.tables`. By default they stay as they are stored.
        revision, token, cache_dir, local_files_only, force_download, unpinned
            See `nanochat.zoo.hub.locate`.
        verify : bool
            Read again what is known of the Hub's files, compare all parts of the model with the digests of its golden
            record, run the record on the backend, and refuse a model that is or computes something else. Of other
            people's models there is no record: their files are compared with the hashes that the Hub lists, and a
            warning says that nothing more is proven.

        Raises
        ------
        ModelNotFoundError
            If nothing has that name.
        FormatError
            If its files are damaged, or it shall be verified and cannot be.
        BackendError
            If the backend is unknown or cannot run here.
        """
        # Late, because the Hub's client takes longer to import than everything above.
        from nanochat.zoo.hub import opened

        model, files, form, is_listed = opened(
            str(name),
            functools.partial(
                cls._of_location,
                name=str(name),
                backend=backend,
                kv_cache=kv_cache,
                tables=tables,
                num_threads=num_threads,
            ),
            # A backend of one's own takes codes, as those of this package do.
            backend=backends.wanted(backend) if isinstance(backend, str) else "reference",
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            unpinned=unpinned,
            verify=verify,
        )
        if verify:
            require_proven(files, form, model._bundle, lambda: model.engine, is_listed=is_listed)
        return model

    @classmethod
    def _of_location(
        cls,
        location: "Location",
        *,
        name: str,
        backend: str | Ops[Any, Any, Any] | Runner[Any],
        kv_cache: Storage,
        tables: Literal["int8"] | None,
        num_threads: int | None,
    ) -> "tuple[Model, ModelFiles, Format[Any], bool]":
        """A model of files that are here, with the files, their format, and whether the Hub lists them."""
        from nanochat.zoo.catalog import say_other_positions

        files = ModelFiles(location.path, name=location.name, origin=location.origin)
        form = detect(files)
        require_free(name, form.copied_bytes(files))
        bundle = location.with_stated(form.read(files))
        say_other_positions(location.name, bundle.config)
        model = cls.from_bundle(
            bundle,
            backend=backend,
            name=name,
            kv_cache=kv_cache,
            tables=tables,
            num_threads=num_threads,
        )
        return model, files, form, location.fetched is not None

    @functools.cached_property
    def cache_owner(self) -> CacheOwner:  # type: ignore[override]  # computed when it is asked for
        """See `Writer`; by a digest of all weights, which takes half a second for a gigabyte."""
        digests = json.dumps([config_digest(self.config), tensor_digests(self.weights)])
        return CacheOwner(
            model=hashlib.sha256(digests.encode()).hexdigest()[:16],
            backend=self.engine.name,
            kv_cache=self.engine.kv_cache,
        )

    @functools.cached_property
    def stated_options(self) -> GenerationOptions:
        """How its authors say that tokens be chosen, to be passed to `generate` or `chat`; empty if they say nothing.

        ``model.chat(messages, **model.stated_options)``. The command line takes them unless it is told otherwise.
        """
        return stated_options(
            self._bundle.generation, where=self._bundle.generation_from or self.name
        )

    @property
    def usage(self) -> "Usage":
        """What the model's card says of its use: a summary, an example, and whether it was trained to chat."""
        # Late, because only some ask, and YAML takes time to import.
        from nanochat.text.front_matter import read_usage

        return read_usage(self._bundle.card)

    def save_pretrained(self, directory: str | Path, *, licence: str | None = None) -> None:
        """Write the model directory: weights, configuration, tokenizer, card, and the hashes and record to verify it.

        Without a licence, it is the model's own; see `nanochat.export.directory.save_model`.

        Raises
        ------
        SaveError
            If a file cannot be written; the model that was there is untouched.
        """
        save_model(directory, self._bundle_now(licence))

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of the next token after every token of `ids`, shape (T, vocabulary).

        Raises
        ------
        ContextLengthError
            If there are more tokens than the context holds.
        InputError
            If there is none, or one is not in the vocabulary.
        """
        self._require_context(ids)
        return self.engine.logits(ids)

    def _require_context(self, ids: Sequence[int]) -> None:
        check_ids(ids, self.config)
        if len(ids) > self.config.context_length:
            raise ContextLengthError(
                f"{len(ids)} tokens do not fit the model's context of {self.config.context_length}: shorten them"
            )

    def embed(
        self,
        text: Prompts,
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = True,
    ) -> NDArray[np.float32]:
        """Vectors that stand for texts, of the hidden states that the head reads out.

        Parameters
        ----------
        text : str, sequence of int, or iterable of either
            As for `generate`.
        pooling : {"mean", "last"}
            The mean over all tokens, or the last one's.
        normalize : bool
            Divide each vector by its length, so that products are cosines.

        Returns
        -------
        vectors : float32 array
            Shape (width,) for one text, (N, width) for several.

        Raises
        ------
        BackendError
            If the backend gives logits only, as "onnx" does.
        ContextLengthError
            If a text is longer than the context.
        InputError
            If a text is empty, or an option is none of its values.
        """
        if pooling not in ("mean", "last"):
            raise InputError(f"pooling={pooling!r}: choose mean or last")
        prompts, single = read_prompts(text, self.tokenizer, special=False)
        for ids in prompts:
            self._require_context(ids)
        states = [self.engine.hidden(ids) for ids in prompts]
        vectors = np.array(
            [x[-1] if pooling == "last" else x.mean(axis=0, dtype=np.float64) for x in states],
            np.float32,
        ).reshape(-1, self.config.width)
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors[0] if single else vectors

    def score(self, text: str) -> Score:
        """Measure how well the model predicts a text that follows ``<|bos|>``, or whatever its texts begin with.

        A text longer than the context is read in windows that overlap by half: every token is scored once, after at
        least half a context of the tokens before it, or all of them.

        Raises
        ------
        InputError
            If the text is empty or not a string.
        """
        ids = scored_ids(text, self.tokenizer)
        return score(self.engine, ids, num_bytes=len(text.encode()))

    @with_options(PushOptions)
    def push_to_hub(self, repo: str, options: PushOptions) -> str:
        """Upload the model with a card, once its record has been verified; the address of the commit or pull request.

        Parameters
        ----------
        repo : str
            ``owner/name`` on the Hugging Face Hub; made if it is not there.
        options
            Keyword arguments, such as ``licence="MIT"`` or ``formats=["gguf"]``; see
            `nanochat.publish.options.PushOptions`. Without a licence, it is the model's own.

        Raises
        ------
        InputError
            If there is no licence, or the repository cannot be.
        FormatError
            If what would be uploaded does not compute what the model does.
        SaveError
            If the Hub cannot be reached or refuses, or a file cannot be written here.
        """
        from nanochat.publish.push import push_model

        source = dataclasses.replace(self._bundle_now(None), name=repo.rpartition("/")[2])
        published = push_model(source, repo, options)[0]
        return published.pull_request_url or published.commit_url

    def _bundle_now(self, licence: str | None) -> Bundle:
        return dataclasses.replace(
            self._bundle, weights=self.weights, licence=licence or self.licence, golden=None
        )

    def describe(self) -> dict[str, object]:
        """What runs, where and why, what would be faster, where it comes from and how it is stored; ready for JSON."""
        classes = tensor_classes(self.config)
        costs = cost(self.config, context=1, kv_cache=self.engine.kv_cache)
        backend = describe(self.engine)
        return {
            "name": self.name,
            "origin": self._bundle.origin,
            "licence": self.licence,
            **backend,
            "backend_reason": self._reason,
            "faster": list(faster(backend, reason=self._reason)),
            "parameters": sum(c.parameters for c in classes),
            "bytes": sum(c.bytes for c in classes),
            "context_length": self.config.context_length,
            "kv_cache": self.engine.kv_cache,
            "kv_bytes_per_token": costs.kv_bytes_per_token,
            "vocab_size": self.config.vocab_size,
            "rounded_tables": None if self._rounded is None else vars(self._rounded),
            "sampling": dict(self.stated_options),
            "sampling_from": self._bundle.generation_from if self.stated_options else "",
            "tensors": [vars(c) for c in classes],
        }


from_pretrained = Model.from_pretrained


class _Closed:
    """What is left of a model that was closed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattribute__(name)
        raise InputError(f"{self._name} was closed: load it again with from_pretrained")
