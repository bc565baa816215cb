"""This file holds the names of the backends, whether each can run here, and the choice among them.

A backend is loaded by name, once, when a model is loaded. Nothing is chosen silently: `choose` says why.
"""

import importlib.util
import os
from typing import Any

from nanochat.backends.host import has_apple_gpu, has_cuda_driver
from nanochat.errors import BackendError, InputError
from nanochat.ops import Ops

__all__ = ["GRAPHS", "NAMES", "choose", "get", "unavailable", "wanted"]

NAMES = ("torch", "mlx", "numba", "reference")
# What runs a whole exported graph, and not the operations of `nanochat.ops`.
GRAPHS = ("onnx",)

_VARIABLE = "NANOCHAT_BACKEND"
# Backends whose number of threads can be chosen.
_THREADED = ("numba", "torch")
_MOST_THREADS = 256

_FIX = {
    "torch": "pip install 'nanochat-ternary[torch]'",
    "mlx": "pip install 'nanochat-ternary[mlx]'",
    "numba": "pip install numba",
    "onnx": "pip install 'nanochat-ternary[onnx]'",
}
# What a backend's module is called, where that is another name.
_MODULES = {"mlx": "mlx.core", "onnx": "onnxruntime"}


def unavailable(name: str) -> str | None:
    """Why the backend cannot run here, with the fix; `None` if it can."""
    if name not in (*NAMES, *GRAPHS):
        raise BackendError(
            f"unknown backend {name!r}: choose auto or one of {', '.join((*NAMES, *GRAPHS))}"
        )
    if name == "reference":
        return None
    try:
        found = importlib.util.find_spec(_MODULES.get(name, name)) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        package = _MODULES.get(name, name).partition(".")[0]
        return f"the package {package} is not installed: {_FIX[name]}"
    return None


def wanted(name: str = "auto") -> str:
    """The backend that was asked for: `name`, or what ``NANOCHAT_BACKEND`` puts in place of "auto"; not checked."""
    return (os.environ.get(_VARIABLE, "") or name) if name == "auto" else name


def choose(name: str = "auto") -> tuple[str, str]:
    """The backend to use and the reason.

    For a model that may be a graph, see `nanochat.export.run.choose_backend`.

    Parameters
    ----------
    name : str
        A backend, or "auto": then the environment variable ``NANOCHAT_BACKEND`` if it is set; torch if CUDA is there;
        MLX on Apple silicon; Numba; the reference.

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
    if unavailable("torch") is None and _cuda_is_there():
        return "torch", "a CUDA device is there"
    if has_apple_gpu() and unavailable("mlx") is None:
        return "mlx", "this is Apple silicon"
    if unavailable("numba") is None:
        return "numba", f"{_without_gpu()}; compiled CPU code is next"
    return "reference", f"nothing faster can run: {unavailable('numba')}"


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
    if chosen in GRAPHS:
        raise BackendError(
            f"backend {chosen!r} runs a whole graph and has no operations of its own: load a model with "
            f"nanochat.from_pretrained(..., backend={chosen!r})"
        )
    if num_threads is not None:
        _check_threads(chosen, num_threads)
    # Late on purpose: a framework is loaded only when its backend is asked for.
    if chosen == "torch":
        from nanochat.backends.torch.ops import TorchOps

        return TorchOps(num_threads=num_threads)
    if chosen == "mlx":
        from nanochat.backends.mlx.ops import MlxOps

        return MlxOps()
    if chosen == "numba":
        from nanochat.backends.numba.ops import NumbaOps

        return NumbaOps(num_threads=num_threads)
    from nanochat.backends.reference.ops import ReferenceOps

    return ReferenceOps()


def _check_threads(name: str, num_threads: int) -> None:
    if name not in _THREADED:
        raise BackendError(
            f"num_threads={num_threads}, but backend {name!r} chooses its threads itself: leave num_threads out, or "
            f"choose {' or '.join(_THREADED)}"
        )
    if not isinstance(num_threads, int) or not 1 <= num_threads <= _MOST_THREADS:
        raise InputError(
            f"num_threads={num_threads!r} is no number of threads: pass 1 to {_MOST_THREADS}, as a rule one for each "
            "physical core, or leave it out"
        )


def _require(name: str) -> str:
    if unavailable(name) is not None:
        reasons = "; ".join(f"{n}: {unavailable(n) or 'available'}" for n in (*NAMES, *GRAPHS))
        raise BackendError(f"backend {name!r} cannot run here ({reasons})")
    return name


def _without_gpu() -> str:
    """Why neither backend for GPUs was taken."""
    if has_apple_gpu():
        return "this is Apple silicon, but MLX is not installed"
    if has_cuda_driver() and unavailable("torch") is not None:
        return "there is a CUDA driver, but torch is not installed"
    return "no CUDA device and no Apple GPU"


def _cuda_is_there() -> bool:
    # Asking torch itself would load it (seconds) for an answer that is almost always no on a machine without a driver.
    if has_cuda_driver() is False:
        return False
    from nanochat.backends.torch.ops import cuda_is_available

    return cuda_is_available()
