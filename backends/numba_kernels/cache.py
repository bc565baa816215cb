"""This file holds the disk cache of compiled kernels, which no edit, damage or other process can mislead.

Numba's own index trusts its files, and asks only whether the file that holds a kernel has changed. Here every file of
compiled code begins with a checksum of itself and of all Python files in the kernel's folder, because code of any of
them may be inlined into the kernel. Where Numba keeps its cache, this one is, too: in ``NUMBA_CACHE_DIR``, beside the
kernels, or in the user's cache folder.
"""

import functools
import hashlib
import inspect
import logging
import pickle
import uuid
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

__all__ = ["KernelCache", "folder", "stamp"]

_LOG = logging.getLogger(__name__)


class KernelCache(FunctionCache):
    """What `numba.njit` takes for its cache of one function.

    Raises
    ------
    RuntimeError
        If there is no folder that can be written.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]  # Numba's own has no types
        name = Path(self._cache_path) / self._impl.filename_base
        self._cache_file: Any = _Files(name, stamp(Path(inspect.getfile(function)).parent))

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel if that is possible."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]  # see above
        except OSError as error:
            _warn(self._cache_path, error.strerror or str(error))


def folder(kernel: object) -> Path | None:
    """Where a kernel is kept, or nothing if there is no folder that can be written."""
    cache = getattr(kernel, "_cache", None)
    return Path(cache._cache_path) if isinstance(cache, KernelCache) else None


class _Files:
    """One file for each kernel and types of its arguments; it takes the place of Numba's index and data files."""

    def __init__(self, name: Path, stamp: bytes) -> None:
        self._name = name
        self._stamp = stamp

    def load(self, key: object) -> Any:
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        code = content[hashlib.sha256().digest_size :]
        # Only what this checksum vouches for is unpickled, and later run.
        return pickle.loads(code) if content == self._signed(code) else None

    def save(self, key: object, data: object) -> None:
        path = self._path(key)
        # Another process that starts now shall see a whole file or none.
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}")
        code: bytes = dumps(data)  # type: ignore[no-untyped-call]  # see above
        try:
            temporary.write_bytes(self._signed(code))
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _signed(self, code: bytes) -> bytes:
        return hashlib.sha256(self._stamp + code).digest() + code

    def _path(self, key: object) -> Path:
        # Types, processor and bytecode, as Numba writes them.
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return self._name.with_name(f"{self._name.name}.{digest}.kernel")


@functools.cache
def stamp(kernels: Path) -> bytes:
    """Checksum of all that decides what a kernel of that folder is compiled to, but for the kernel's key."""
    checksum = hashlib.sha256(numba.__version__.encode())
    for path in sorted(kernels.glob("*.py")):
        checksum.update(hashlib.sha256(path.name.encode() + b"\0" + path.read_bytes()).digest())
    return checksum.digest()


@functools.cache
def _warn(folder: str, reason: str) -> None:
    _LOG.warning(
        "compiled kernels cannot be kept in %s (%s), so the next start compiles them anew: free space there, or set "
        "NUMBA_CACHE_DIR to another folder",
        folder,
        reason,
    )
