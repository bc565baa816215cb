"""This file holds the models of a server: each with its names, its engine thread and what it says of itself."""

import functools
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

from nanochat import __version__
from nanochat.errors import counted
from nanochat.generation.cache import CacheOwner
from nanochat.generation.session import Session
from nanochat.lm import Model
from nanochat.serve.api.errors import ApiError
from nanochat.serve.engine import EngineThread
from nanochat.serve.room import Room, find_room
from nanochat.serve.settings import Settings
from nanochat.text.codec import TextCodec
from nanochat.text.grammar import Vocabulary

__all__ = ["Served", "find_model", "load_served"]


# How many times as long as others a step may take that reads of a prompt: streams shall stay smooth.
_STRETCH = 2.5


class Served:
    """A model that is asked over HTTP; see `load_served`."""

    def __init__(
        self,
        model: Model,
        engine: EngineThread,
        *,
        names: Sequence[str],
        room: Room,
        owner: CacheOwner,
        drafts: bool | Literal["heads"],
    ) -> None:
        self.model = model
        # What its texts are guessed from.
        self.drafts = drafts
        self.engine = engine
        self.names = tuple(names)
        self.room = room
        self.context = room.capacity
        self.created = int(time.time())
        parts = (
            owner.model,
            owner.backend,
            owner.kv_cache,
            model.tokenizer.fingerprint,
            __version__,
            str(model.engine.details.get("instructions", "")),
        )
        # Equal fingerprints and seeds give equal texts.
        self.fingerprint = "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    @property
    def id(self) -> str:
        """Its first name."""
        return self.names[0]

    @property
    def tokenizer(self) -> TextCodec:
        """The model's."""
        return self.model.tokenizer

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens, for forms; made when it is first asked for."""
        return Vocabulary(self.tokenizer)

    @property
    def in_words(self) -> str:
        """What runs, for people."""
        company = (
            ""
            if _has_no_company(self.model) or self.room.rows == 1
            else (
                "; a text may depend on those beside it on this backend, unless --deterministic is passed: "
                "then one is written at a time"
            )
        )
        if self.model.engine.name == "onnx":
            company = "; a graph writes its texts one after the other"
        described = self.model.describe()
        parameters = float(str(described["parameters"]))
        return (
            f"{self.id}: {parameters / 1e6:,.1f}M parameters on {described['backend']} ({described['device']}), "
            f"{counted(self.room.rows, 'text')} at a time of up to {self.context:,} tokens, keys and values in "
            f"{described['kv_cache']}, {self.room.bytes / 1e6:,.0f} MB{company}"
        )

    def card(self, name: str) -> dict[str, Any]:
        """What ``/v1/models`` says of it."""
        described = self.model.describe()
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "nanochat-ternary",
            "root": self.id,
            "max_model_len": self.context,
            "meta": {
                key: described[key]
                for key in ("backend", "device", "parameters", "bytes", "kv_cache", "vocab_size")
                if key in described
            },
        }


async def load_served(
    load: Callable[[], Model],
    *,
    names: Sequence[str],
    settings: Settings,
    turn: AbstractContextManager[Any] | None = None,
    died: Callable[[], object] | None = None,
) -> Served:
    """Load a model into an engine thread of its own.

    Parameters
    ----------
    names : sequence of str
        By which requests name it; the first is its own.
    turn, died
        See `nanochat.serve.engine.EngineThread`.

    Raises
    ------
    NanochatError
        If it cannot be loaded, or its texts have no room.
    """
    engine = EngineThread(turn=turn, died=died)

    def begin() -> Served:
        model = load()
        # What has no company cannot depend on it.
        is_alone = settings.deterministic and not _has_no_company(model)
        wanted = 1 if is_alone else settings.max_rows
        # Texts of other backends would not be the same.
        drafts = settings.drafts and model.engine.is_exact
        heads = drafts and settings.draft_heads
        room = find_room(model, rows=wanted, kv_memory=settings.kv_memory, heads=heads)
        rows = room.rows
        session = Session(
            model.engine,
            model.tokenizer,
            rows=rows,
            capacity=room.capacity,
            pages=room.pages,
            stretch=None if is_alone else _STRETCH,
            prefix_cache=settings.prefix_cache and not is_alone,
            copies=room.copies,
            heads=heads,
        )
        engine.run(session, most_texts=rows + settings.queue)
        return Served(
            model,
            engine,
            names=names,
            room=room,
            owner=model.cache_owner,
            drafts="heads" if heads else drafts,
        )

    try:
        return await engine.call(begin)
    except BaseException:
        await engine.stop()
        raise


def _has_no_company(model: Model) -> bool:
    """Whether texts are what they are alone; a graph runs its rows one after the other."""
    return model.engine.is_exact or model.engine.name == "onnx"


def find_model(models: Mapping[str, Served], name: str | None) -> Served:
    """The model of that name; the only one need not be named.

    Raises
    ------
    ApiError
        If there is none.
    """
    if name is None:
        first = next(iter(models.values()))
        if all(model is first for model in models.values()):
            return first
        raise ApiError(400, f"model is missing: name one of {', '.join(models)}", param="model")
    if name not in models:
        raise ApiError(
            404,
            f"the model {name!r:.80} is not served here: name one of {', '.join(models)}",
            code="model_not_found",
            param="model",
        )
    return models[name]
