"""This package holds the backends, one in each folder, whether each can run here, and the choice among them.

A folder here whose ``__init__.py`` has a `BACKEND` is a backend: there is no list to add it to. See
`nanochat.backends.backend`. It is loaded by name, once, when a model is loaded. Nothing is chosen silently: `choose`
says why.
"""

import importlib.util
import logging
import os
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from nanochat.backends.backend import Backend
from nanochat.backends.host import num_cores
from nanochat.errors import BackendError, InputError, counted
from nanochat.ops import Ops

__all__ = ["BACKENDS", "choose", "discover", "get", "graphs", "names", "unavailable", "wanted"]

_LOGGER = logging.getLogger(__name__)

_VARIABLE = "NANOCHAT_BACKEND"
_MOST_THREADS = 256


def discover() -> dict[str, Backend]:
    """The backends of all folders on this package's ``__path__``, by name, those that "auto" asks first in front."""
    folders = [module.name for module in iter_modules(__path__) if module.ispkg]
    found = {name: import_module(f"{__name__}.{name}").BACKEND for name in folders}
    return dict(sorted(found.items(), key=lambda item: item[1].rank))


# Every backend by its name.
BACKENDS: dict[str, Backend] = discover()


def names() -> tuple[str, ...]:
    """The backends that have the operations of `nanochat.ops`."""
    return tuple(name for name, backend in BACKENDS.items() if backend.load is not None)


def graphs() -> tuple[str, ...]:
    """The backends that run a whole exported graph, and no single operation."""
    return tuple(name for name, backend in BACKENDS.items() if backend.load is None)


def unavailable(name: str) -> str | None:
    """Why the backend cannot run here, with the fix; `None` if it can."""
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: choose auto or one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    try:
        found = importlib.util.find_spec(backend.module) is not None
    except ModuleNotFoundError:
        found = False
    if found:
        return None
    package = backend.module.partition(".")[0]
    return f"the package {package} is not installed: {backend.fix}"


def wanted(name: str = "auto") -> str:
    """The backend that was asked for: `name`, or what ``NANOCHAT_BACKEND`` puts in place of "auto"; not checked."""
    return (os.environ.get(_VARIABLE, "") or name) if name == "auto" else name


def choose(name: str = "auto") -> tuple[str, str]:
    """The backend to use and the reason.

    For a model that may be a graph, see `nanochat.export.run.choose_backend`.

    Parameters
    ----------
    name : str
        A backend, or "auto": then the environment variable ``NANOCHAT_BACKEND`` if it is set; or the first backend that
        suits this machine: torch if CUDA is there; MLX on Apple silicon; Numba; the reference.

    Raises
    ------
    BackendError
        If the named backend is unknown or unavailable.
    """
    if name != "auto":
        return _require(name), "asked for"
    named = wanted()
    if named != "auto":
        return _require(named), f"{_VARIABLE} is set"
    missed = []
    for candidate, backend in BACKENDS.items():
        if unavailable(candidate) is not None:
            missed.append(backend.missed())
        elif reason := backend.suits():
            why = "; ".join(filter(None, missed))
            return candidate, f"{reason}: {why}" if why else reason
    raise BackendError(f"no backend suits this machine ({_reasons()}): choose one by name")


def get(name: str = "auto", *, num_threads: int | None = None) -> Ops[Any, Any, Any]:
    """The operations of a backend, by name or chosen by `choose`.

    Parameters
    ----------
    name : str
        As for `choose`.
    num_threads : int, optional
        Threads of the CPU that share an operation, for numba (by default one for each physical core) and for torch,
        where the number is the whole process's.

    Raises
    ------
    BackendError
        If the backend is unknown or unavailable, where the message repeats every backend's reason; or if it does not
        let the caller choose its threads.
    InputError
        If `num_threads` is no number from 1 to 256.
    """
    chosen = choose()[0] if name == "auto" else _require(name)
    load = BACKENDS[chosen].load
    if load is None:
        raise BackendError(
            f"backend {chosen!r} runs a whole graph and has no operations of its own: load a model with "
            f"nanochat.from_pretrained(..., backend={chosen!r})"
        )
    if num_threads is None:
        return load()
    _check_threads(chosen, num_threads)
    return load(num_threads=num_threads)


def _check_threads(name: str, num_threads: int) -> None:
    if not BACKENDS[name].takes_threads:
        others = [other for other in names() if BACKENDS[other].takes_threads]
        raise BackendError(
            f"num_threads={num_threads}, but backend {name!r} chooses its threads itself: leave num_threads out, or "
            f"choose {' or '.join(others)}"
        )
    if not isinstance(num_threads, int) or not 1 <= num_threads <= _MOST_THREADS:
        raise InputError(
            f"num_threads={num_threads!r} is no number of threads: pass 1 to {_MOST_THREADS}, as a rule one for each "
            "physical core, or leave it out"
        )
    if num_threads > (cores := num_cores()):
        _LOGGER.warning(
            "%s for %s: more than one a core wait for each other, and are slower",
            counted(num_threads, "thread"),
            counted(cores, "core"),
        )


def _require(name: str) -> str:
    if unavailable(name) is not None:
        raise BackendError(f"backend {name!r} cannot run here ({_reasons()})")
    return name


def _reasons() -> str:
    return "; ".join(f"{name}: {unavailable(name) or 'available'}" for name in BACKENDS)
