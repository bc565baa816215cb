"""This file holds how kernels are compiled, kept on disk, and announced to the users who wait for them.

A kernel is compiled when it is first called, and loaded from its disk cache by the next process. Numba's own index
trusts its files, and asks only whether the file that holds a kernel has changed. Here every file of compiled code
begins with a checksum of itself and of all Python files in this package's folders, because code of any of them may be
inlined into the kernel: no edit, damage or other process can mislead it. Where Numba keeps its cache, this one is, too:
in ``NUMBA_CACHE_DIR``, beside the kernels, or in the user's cache folder.

Numba broadcasts an event when it compiles a function, and none when it loads one from the cache or calls it: so
listening costs nothing while kernels run. The two records of `logging` have an attribute ``progress``, "begin" and
"end", for a program that would rather show a moving sign between them.
"""

import contextlib
import functools
import hashlib
import inspect
import logging
import pickle
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba import njit
from numba.core.caching import FunctionCache
from numba.core.event import Event, Listener, register
from numba.core.runtime.nrt import rtsys
from numba.core.serialize import dumps

from nanochat.errors import counted

__all__ = [
    "Files",
    "KernelCache",
    "Progress",
    "end_wait",
    "folder",
    "fused_kernel",
    "inlined",
    "kernel",
]
__all__ += ["kept_near", "stamp", "sum_kernel"]

F = TypeVar("F", bound=Callable[..., object])

_LOG = logging.getLogger(__name__)

# The folders with kernels are in this one.
_KERNELS = Path(__file__).parents[1]
# Seconds of compiling that nobody asks about.
_INSTANT = 0.3


def kernel(function: F) -> F:
    """Compile with every operation rounded as it is written."""
    return _compiled(function, fastmath=set())


def fused_kernel(function: F) -> F:
    """Compile so that a product is added without being rounded first.

    Write ``sum + a * b + c * d``: of ``a * b + c * d`` the compiler may round either, here one and there the other.
    """
    return _compiled(function, fastmath={"contract"})


def sum_kernel(function: F) -> F:
    """Compile so that, besides, the terms of a sum may be reordered; NaN and infinity keep their meaning."""
    return _compiled(function, fastmath={"contract", "reassoc"})


def inlined(function: F) -> F:
    """Compile into every caller, by its rules: only there does LLVM see that accumulators overlap nothing."""
    return cast(F, njit(error_model="numpy", inline="always")(function))


def _compiled(function: F, *, fastmath: set[str]) -> F:
    # A division by zero gives infinity (error_model): a check would keep loops from being vectorised.
    decorator = functools.partial(njit, nogil=True, error_model="numpy", fastmath=fastmath)
    # Without Numba's own cache, which does not see changes of inlined functions.
    compiled: Any = decorator()(function)
    try:
        compiled._cache = KernelCache(function)
    except RuntimeError:
        _warn()
    return cast(F, compiled)


@functools.cache
def _warn() -> None:
    _LOG.warning(
        "Numba finds no folder where it could keep compiled kernels, so every start compiles them anew, for some "
        "seconds: set NUMBA_CACHE_DIR to a folder that can be written"
    )


class KernelCache(FunctionCache):
    """What `numba.njit` takes for its cache of one function; a `RuntimeError` if there is no folder to write to."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]  # Numba's own has no types
        name = Path(self._cache_path) / self._impl.filename_base
        self._cache_file: Any = Files(name, stamp(Path(inspect.getfile(function)).parent))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return a compiled kernel, or nothing if it is not kept."""
        # Numba's own first imports all that it compiles with, 0.12 s of a start. Whoever compiles does that anyway; to
        # run what is compiled takes the runtime only.
        rtsys.initialize(target_context)
        return self._load_overload(sig, target_context)  # type: ignore[no-untyped-call]  # see above

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel if that is possible."""
        try:
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]  # see above
        except OSError as error:
            _warn_lost(self._cache_path, error.strerror or str(error))


def folder(kernel: object) -> Path | None:
    """Where a kernel is kept, or nothing if there is no folder that can be written."""
    cache = getattr(kernel, "_cache", None)
    return Path(cache._cache_path) if isinstance(cache, KernelCache) else None


def kept_near(kernel: object, name: str) -> "Files | None":
    """Files of that name where a kernel is kept, for what was made like it; nothing where none can be kept."""
    place = folder(kernel)
    return None if place is None else Files(place / name, stamp())


class Files:
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

    # Numba's name.
    def save(self, key: object, data: object) -> None:
        """Keep data if that is possible."""
        path = self._path(key)
        # Another process that starts now shall see a whole file or none.
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:16]}")
        code: bytes = dumps(data)  # type: ignore[no-untyped-call]  # see above
        try:
            temporary.write_bytes(self._signed(code))
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            _warn_lost(str(path.parent), error.strerror or str(error))

    def _signed(self, code: bytes) -> bytes:
        return hashlib.sha256(self._stamp + code).digest() + code

    def _path(self, key: object) -> Path:
        # Types, processor and bytecode, as Numba writes them.
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return self._name.with_name(f"{self._name.name}.{digest}.kernel")


@functools.cache
def stamp(kernels: Path = _KERNELS) -> bytes:
    """Checksum of all that decides what a kernel of that folder is compiled to, but for the kernel's key."""
    # Ours call each other across folders; above their folders lies none.
    ours = _KERNELS in kernels.parents or kernels == _KERNELS
    files = _KERNELS.glob("*/*.py") if ours else kernels.glob("*.py")
    checksum = hashlib.sha256(numba.__version__.encode())
    for path in sorted(files):
        name = path.relative_to(path.parents[1]).as_posix()
        checksum.update(hashlib.sha256(name.encode() + b"\0" + path.read_bytes()).digest())
    return checksum.digest()


@functools.cache
def _warn_lost(folder: str, reason: str) -> None:
    _LOG.warning(
        "compiled kernels cannot be kept in %s (%s), so the next start compiles them anew: free space there, or set "
        "NUMBA_CACHE_DIR to another folder",
        folder,
        reason,
    )


class Progress(Listener):
    """Counts the functions of one package that are compiled, and says so when they take longer than an instant.

    The names of their modules start with `package`: the program may compile functions of its own.
    """

    def __init__(self, package: str, *, instant: float = _INSTANT) -> None:
        self._package = package
        self._instant = instant
        # Kernels that are being compiled, one inside the other; Numba's lock lets one thread compile at a time.
        self._depth = 0
        self._start = 0.0
        self._count, self._seconds, self._begun = 0, 0.0, False
        # Somebody who does not look at logs at all is told once.
        self._level = logging.WARNING
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()

    def on_start(self, event: Event) -> None:
        """Called by Numba before it compiles."""
        # What a kernel calls is compiled within it, and belongs to it.
        if self._depth:
            self._depth += 1
        elif _module(event).startswith(self._package):
            self._depth = 1
            self._start = time.perf_counter()
            if self._seconds >= self._instant:
                self._say_begin()
            else:
                # One kernel alone may take longer.
                self._timer = threading.Timer(self._instant - self._seconds, self._say_begin)
                self._timer.daemon = True
                self._timer.start()

    def on_end(self, event: Event) -> None:
        """Called by Numba when it has compiled, or failed to."""
        if not self._depth:
            return
        self._depth -= 1
        if not self._depth:
            if self._timer is not None:
                self._timer.cancel()
            seconds = time.perf_counter() - self._start
            self._count += 1
            self._seconds += seconds
            _LOG.debug("compiled %s in %.2f s", _name(event), seconds)

    def end_wait(self) -> None:
        """Say that the wait is over, if there was one that has been announced."""
        if not self._count or self._depth:
            return
        with self._lock:
            begun, self._begun = self._begun, False
        if begun:
            _LOG.info(
                "compiled %s in %.1f s",
                counted(self._count, "kernel"),
                self._seconds,
                extra={"progress": "end"},
            )
        self._count, self._seconds = 0, 0.0

    def _say_begin(self) -> None:
        # The timer's thread says it before anybody can say that it has ended.
        with self._lock:
            if self._begun or not self._depth:
                return
            self._begun = True
            level, self._level = self._level, logging.INFO
            _LOG.log(
                level,
                "compiling kernels for this processor, once: usually under 20 seconds ...",
                extra={"progress": "begin"},
            )


def end_wait() -> None:
    """Say that kernels have been compiled, if some were for the result that is ready now."""
    _PROGRESS.end_wait()


def _module(event: Event) -> str:
    return str(event.data["dispatcher"].py_func.__module__)


def _name(event: Event) -> str:
    return f"{_module(event).rpartition('.')[2]}.{event.data['dispatcher'].py_func.__name__}"


_PROGRESS = Progress(__package__.rpartition(".")[0])
register("numba:compile", _PROGRESS)  # type: ignore[no-untyped-call]
