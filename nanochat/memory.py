"""This file holds what a model takes of memory, and the refusal of one for which not enough is free."""

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

from nanochat import backends
from nanochat.backends.backend import Footprint
from nanochat.backends.free_memory import free_bytes
from nanochat.config import ModelConfig
from nanochat.cost import cost
from nanochat.errors import InputError, MemoryShortageError
from nanochat.generation.engine import PREFILL_CHUNK
from nanochat.ops import Storage
from nanochat.shapes import shapes
from nanochat.weights import named_leaves

__all__ = [
    "Room",
    "free_bytes",
    "longest_context",
    "needed_bytes",
    "require_free",
    "require_room",
    "rooms",
    "runtime_bytes",
    "text_bytes",
]

_LOGGER = logging.getLogger(__name__)

# Tokens of a prompt and its answer for which there must be room.
_SHORT = 256


def require_free(name: str, needed: int) -> None:
    """Refuse files that are larger than the memory into which they would be read: `needed` bytes, 0 if mapped."""
    free = free_bytes() if needed else None
    if free is not None and needed > free:
        raise MemoryShortageError(
            f"the files of {name} take {_gigabytes(needed)} when they are read, and {_gigabytes(free)} of memory are "
            "free: close other programs, or export the model on a larger machine with `nanochat-export --format hf`, "
            "whose files are not read into memory"
        )


def require_room(
    name: str,
    config: ModelConfig,
    backend: str,
    *,
    kv_cache: Storage = "float32",
    free: int | None = None,
    others: Sequence[str] = (),
    is_graph: bool = False,
) -> None:
    """Refuse a model for which there is not enough memory, before any of it is taken.

    What must fit is the model with a short text; if a text as long as its context does not, a warning says so.

    Parameters
    ----------
    free : int, optional
        Bytes that are free, of the device that the backend uses; by default `free_bytes`. What is unknown refuses
        nothing.
    others : sequence of str
        Further backends that can run here, to be proposed if one of them has enough.
    is_graph : bool
        See `needed_bytes`.
    """
    free = free_bytes() if free is None else free
    if free is None:
        return
    short = min(_SHORT, config.context_length)
    needed = _with_runtime(config, backend, short, kv_cache, is_graph, free)
    if needed > free:
        fixes = [*_fixes(config, backend, kv_cache, short, free, others, is_graph)]
        fixes += ["close other programs", "choose a smaller model"]
        raise MemoryShortageError(
            f"{name} needs about {_gigabytes(needed)} on backend {backend}, and {_gigabytes(free)} of memory are free: "
            f"{', '.join(fixes[:-1])}, or {fixes[-1]}"
        )
    whole = text_bytes(
        config,
        backend,
        context=config.context_length,
        kv_cache=kv_cache,
        free=free,
        is_graph=is_graph,
    )
    if whole > free:
        tokens = longest_context(config, backend, kv_cache=kv_cache, free=free, is_graph=is_graph)
        narrower = _narrower(config, backend, kv_cache)
        fitting = {
            other: longest_context(config, backend, kv_cache=other, free=free) for other in narrower
        }
        more = [
            f"pass kv_cache={other!r} ({n} tokens)" for other, n in fitting.items() if n > tokens
        ]
        _LOGGER.warning(
            "%s: a text of all %d tokens of its context needs %s more than the %s of memory that are free; about %d "
            "tokens fit: %s, or keep texts short",
            name,
            config.context_length,
            _gigabytes(whole - free),
            _gigabytes(free),
            tokens,
            ", ".join([*more, "close other programs"]),
        )


@dataclass(frozen=True, kw_only=True)
class Room:
    """What a model and one text take, and whether that is free; `None` if nobody knows what is."""

    context: int
    kv_cache: Storage
    bytes: int
    fits: bool | None


def rooms(
    config: ModelConfig, backend: str, *, contexts: Sequence[int], free: int | None
) -> list[Room]:
    """The room for texts of so many tokens, in every form in which a backend keeps keys and values."""
    found = []
    for context in contexts:
        for kv_cache in _storages(backend):
            size = text_bytes(config, backend, context=context, kv_cache=kv_cache, free=free)
            fits = None if free is None else size <= free
            found.append(Room(context=context, kv_cache=kv_cache, bytes=size, fits=fits))
    return found


def longest_context(
    config: ModelConfig, backend: str, *, kv_cache: Storage, free: int, is_graph: bool = False
) -> int:
    """Tokens of the longest text for which there is room, at most its context; 0 if even a short one has none."""
    short = min(_SHORT, config.context_length)
    least = _with_runtime(config, backend, short, kv_cache, is_graph, free)
    if least > free:
        return 0
    each = cost(config, context=1, kv_cache=kv_cache).kv_bytes_per_token
    # Without attention, a text takes the same whatever its length.
    return (
        min(config.context_length, short + (free - least) // each)
        if each
        else config.context_length
    )


def text_bytes(
    config: ModelConfig,
    backend: str,
    *,
    context: int,
    kv_cache: Storage,
    free: int | None,
    is_graph: bool = False,
) -> int:
    """What a model, its backend and a text of so many tokens take that is read and written in parts.

    Where so much is `free` that a model and a short text do not fit, weights are kept in less, if the backend can.
    """
    # More work than that of a short text is counted for no text: a prompt is read in parts.
    short = min(_SHORT, context)
    least = _with_runtime(config, backend, short, kv_cache, is_graph, free)
    return least + (context - short) * cost(config, context=1, kv_cache=kv_cache).kv_bytes_per_token


def _storages(backend: str) -> tuple[Storage, ...]:
    # A graph keeps float32.
    return ("float32",) if backend in backends.graphs() else get_args(Storage)


def _narrower(config: ModelConfig, backend: str, kv_cache: Storage) -> list[Storage]:
    """The forms of keys and values that take less, the widest first."""
    sizes = {
        one: cost(config, context=1, kv_cache=one).kv_bytes_per_token for one in _storages(backend)
    }
    return [one for one in sizes if sizes[one] < sizes[kv_cache]]


def _fixes(
    config: ModelConfig,
    backend: str,
    kv_cache: Storage,
    context: int,
    free: int,
    others: Iterable[str],
    is_graph: bool,
) -> Iterator[str]:
    """What would be small enough."""
    for narrow in _narrower(config, backend, kv_cache):
        size = _with_runtime(config, backend, context, narrow, is_graph, free)
        if size <= free:
            yield f"pass kv_cache={narrow!r} ({_gigabytes(size)})"
            break
    sizes = {
        other: _with_runtime(config, other, context, kv_cache, is_graph, free)
        for other in others
        if other != backend
    }
    smallest = min(sizes, key=lambda other: sizes[other], default=None)
    if smallest is not None and sizes[smallest] <= free:
        yield f"choose backend {smallest} ({_gigabytes(sizes[smallest])})"


def _with_runtime(
    config: ModelConfig,
    backend: str,
    context: int,
    kv_cache: Storage,
    is_graph: bool,
    free: int | None,
) -> int:
    # First of all: a backend may be imported to tell what it keeps.
    runtime = runtime_bytes(backend)
    model = partial(
        needed_bytes, config, backend, context=context, kv_cache=kv_cache, is_graph=is_graph
    )
    needed = model() + runtime
    if free is None or needed <= free:
        return needed
    return model(is_short=True) + runtime


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


def needed_bytes(
    config: ModelConfig,
    backend: str,
    *,
    context: int,
    batch: int = 1,
    kv_cache: Storage = "float32",
    is_graph: bool = False,
    is_short: bool = False,
) -> int:
    """About what a model on a backend and its work take at most, from loading to the end of a text.

    What the backend itself takes, its libraries and what it compiles, is not counted.

    Parameters
    ----------
    backend : str
        A name of `nanochat.backends`.
    context : int
        Tokens of each of `batch` texts, the prompt and the answer.
    is_graph : bool
        Whether the model's file is a graph, which a backend of graphs need not write first.
    is_short : bool
        Whether that is more than is free otherwise: some backends then keep weights in less.
    """
    footprint = _footprint(backend, is_graph)
    costs = cost(config, context=context, kv_cache=kv_cache)
    tree = shapes(config)
    specs = [spec for _, spec in named_leaves(tree)]
    remembered = batch * (context * costs.kv_bytes_per_token + costs.state_bytes)
    # Of a prompt, all tokens go through the layers, and the last one through the head.
    tables = [spec for spec in (tree.embedding, tree.head) if spec and spec.kind == "ternary"]
    layers = [spec for spec in specs if spec not in tables]
    features = config.num_streams * config.width
    work = footprint.work_bytes(layers, tokens=min(context, PREFILL_CHUNK), features=features)
    if tables:
        work = max(work, footprint.work_bytes(tables, tokens=batch, features=features))
    loading = footprint.loading_bytes(specs, is_short=is_short)
    return max(loading, footprint.kept_bytes(specs, is_short=is_short) + remembered + work)


def runtime_bytes(backend: str) -> int:
    """What the libraries and the code of a backend are going to take; 0 if they are there already."""
    footprint = _footprint(backend, is_graph=False)
    return 0 if backends.BACKENDS[backend].module in sys.modules else footprint.runtime


def _footprint(backend: str, is_graph: bool) -> Footprint:
    if backend not in backends.BACKENDS:
        raise InputError(
            f"nothing is known of the memory of backend {backend!r}: choose one of {', '.join(backends.BACKENDS)}"
        )
    known = backends.BACKENDS[backend]
    return (known.graph_footprint if is_graph else None) or known.footprint
