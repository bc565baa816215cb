"""This file holds prompt caches: what a model has read of a prompt, in a file, so that it need not be read again."""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.errors import FormatError, InputError
from nanochat.files import atomic_write, exists, read_bytes
from nanochat.generation.engine import Runner

__all__ = ["CacheOwner", "PromptCache", "load_cache", "read_prompt", "save_cache"]

_ABOUT = "about"
_FORMAT = 1
_MAX_BYTES = 2**36


@dataclass(frozen=True)
class CacheOwner:
    """Who can go on from a cache: a model by its digest, a backend, and what it keeps keys and values in."""

    model: str
    backend: str
    kv_cache: str


@dataclass(frozen=True, eq=False)
class PromptCache:
    """A prompt that was read, for prompts that begin with it.

    Parameters
    ----------
    ids : tuple of int
        Its tokens.
    owner : CacheOwner
        Who read it.
    arrays : tuple of arrays
        See `nanochat.rows.RowState.read_row`.
    """

    ids: tuple[int, ...]
    owner: CacheOwner
    arrays: tuple[NDArray[Any], ...]

    def require_of(self, owner: CacheOwner, *, where: str) -> None:
        """Refuse a cache that somebody else made."""
        for name, wanted in asdict(owner).items():
            made = getattr(self.owner, name)
            if made != wanted:
                raise InputError(
                    f"{where} was made with {name}={made!r:.40}, and this is {wanted!r:.40}: use what made it, or save "
                    "the cache again"
                )


def read_prompt(runner: Runner[Any], ids: Sequence[int], owner: CacheOwner) -> PromptCache:
    """Let a model read a prompt, and keep what it remembers then."""
    state = runner.new_state(rows=1, capacity=len(ids))
    row = state.admit()
    runner.extend(state, row, ids)
    return PromptCache(tuple(map(int, ids)), owner, tuple(state.read_row(row)))


def save_cache(path: Path, cache: PromptCache) -> None:
    """Write a cache to a file of NumPy's, complete or not at all.

    Raises
    ------
    SaveError
        If it cannot be written; what stood there before is untouched.
    """
    about = {"format": _FORMAT, "ids": cache.ids, **asdict(cache.owner)}
    arrays = {str(number): array for number, array in enumerate(cache.arrays)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{_ABOUT: np.array(json.dumps(about))}, **arrays)
    atomic_write(path, buffer.getvalue())


def load_cache(path: Path) -> PromptCache:
    """Read a file of `save_cache`.

    Raises
    ------
    FormatError
        If it is none, or damaged.
    InputError
        If it is not there.
    """
    if not exists(path):
        raise InputError(f"{path}: no such file; save_cache writes one")
    content = read_bytes(path, limit=_MAX_BYTES)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            about = json.loads(str(file[_ABOUT]))
            arrays = tuple(file[str(number)] for number in range(len(file.files) - 1))
    # Whatever NumPy, ZIP and JSON say of a file that is none.
    except (OSError, ValueError, LookupError, TypeError, zipfile.BadZipFile, EOFError) as error:
        raise FormatError(
            f"{path} is no prompt cache, or damaged ({error!s:.80}): save it again"
        ) from error
    match about:
        case {"format": 1, "ids": [*ids], "model": str(model), "backend": str(backend),
              "kv_cache": str(storage)} if ids and all(type(token) is int for token in ids):  # fmt: skip
            return PromptCache(tuple(ids), CacheOwner(model, backend, storage), arrays)
        case _:
            raise FormatError(f"{path} is no prompt cache of this version: save it again")
