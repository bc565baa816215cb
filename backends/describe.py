"""This file holds what can be said of a backend at work: where it runs, why it was chosen, and what would be faster.

Nothing here runs a kernel or loads a framework; a model asks for it whenever it is loaded. That one backend is faster
than another is said where it was measured (`python -m bench backends`), and of no GPU.
"""

import os
import platform
import sys
from collections.abc import Iterator, Mapping

from nanochat import backends
from nanochat.backends.host import has_apple_gpu, has_cuda_driver
from nanochat.errors import how_to_install
from nanochat.ops import Described

__all__ = ["describe", "faster", "summary"]

# Instruction sets of one number are about as fast as each other.
_SPEEDS = {"portable": 0, "avx2": 1, "avxvnni": 2, "avx512vnni": 2}


def describe(runner: Described) -> dict[str, object]:
    """What computes, on which device, with what; ready for JSON.

    Parameters
    ----------
    runner : Ops or Runner
        A backend, a model at work on one, or a runtime of a whole graph.
    """
    versions = {"python": platform.python_version()}
    # A backend of one's own is in no folder here.
    known = backends.BACKENDS.get(runner.name)
    for module in ("numpy", *(known.libraries if known else ())):
        version = getattr(sys.modules.get(module), "__version__", None)
        if version is not None:
            versions[module.partition(".")[0]] = str(version)
    return {
        "backend": runner.name,
        "device": runner.device,
        **runner.details,
        "versions": versions,
    }


def faster(described: Mapping[str, object], *, reason: str = "") -> tuple[str, ...]:
    """What would be faster on this machine than a backend as it is, or is left unused, and how to get it.

    Parameters
    ----------
    described : mapping
        From `describe`.
    reason : str
        Why the backend was chosen, as `nanochat.backends.choose` says.
    """
    name, device = str(described["backend"]), str(described["device"])
    advice = [*_own(name, described)]
    if not device.startswith(("cuda", "gpu")):
        advice = [_gpu(name, reason), _kernels(name, reason), *advice]
    return tuple(text for text in advice if text)


def summary(model: str, reason: str, described: Mapping[str, object]) -> str:
    """One line for a log: what a model runs on, why, and what would be faster.

    Parameters
    ----------
    model, reason : str
        The model's name, and why the backend was chosen.
    described : mapping
        From `describe`.

    Examples
    --------
    >>> summary("tiny", "asked for", {"backend": "mine", "device": "cpu", "instructions": "avx2", "threads": 2})
    'tiny runs on mine (avx2, 2 threads): asked for'
    """
    name = str(described["backend"])
    where = [str(described.get("instructions") or described["device"])]
    if isinstance(threads := described.get("threads"), int):
        where.append("1 thread" if threads == 1 else f"{threads} threads")
    text = f"{model} runs on {name} ({', '.join(where)}): {reason}"
    advice = faster(described, reason=reason)
    return f"{text}. To use more of this machine: {'; '.join(advice)}" if advice else text


def _gpu(name: str, reason: str) -> str:
    """How to use a GPU that is not used."""
    if has_apple_gpu() and name != "mlx":
        return f"the Apple GPU is not used: {_get('mlx', reason)}"
    if not has_cuda_driver():
        return ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "the NVIDIA GPU is not used: unset CUDA_VISIBLE_DEVICES, which hides it"
    if backends.unavailable("torch") is not None:
        return f"the NVIDIA GPU is not used: {how_to_install('cuda')}"
    if _sees_cuda() is False:
        return (
            "the NVIDIA GPU is not used, because this build of torch finds none: install one for CUDA, see "
            "pytorch.org/get-started, or update the driver"
        )
    if name == "torch":
        return "the NVIDIA GPU is not used: pass TorchOps('cuda') as the backend"
    return f"the NVIDIA GPU is not used: {_get('torch', reason)}"


def _kernels(name: str, reason: str) -> str:
    """How to use compiled kernels instead of a backend that is slower on every CPU where both were measured."""
    if name == "numba" or name not in backends.BACKENDS:
        return ""
    # MLX has the GPU of a Mac.
    if name == "mlx" and has_apple_gpu():
        return ""
    return f"compiled CPU kernels are faster: {_get('numba', reason)}"


def _get(name: str, reason: str) -> str:
    """What to do for a backend."""
    missing = backends.unavailable(name)
    if missing is not None:
        return missing.partition(": ")[2]
    if reason == "NANOCHAT_BACKEND is set":
        return f"unset NANOCHAT_BACKEND, or set it to {name}"
    return f"choose backend {name}"


def _own(name: str, described: Mapping[str, object]) -> Iterator[str]:
    """How the same backend would be faster."""
    match described:
        case {"instructions": str(used), "available": [str(best), *_]}:
            if _SPEEDS.get(used, 0) < _SPEEDS.get(best, 0):
                yield f"{best} is faster than {used}: unset NANOCHAT_ISA"
    match described:
        case {"threads": int(threads), "cores": int(cores)} if threads < cores:
            yield (
                f"{name} uses {threads} of {cores} cores: leave num_threads out, or pass num_threads={cores}"
            )


def _sees_cuda() -> bool | None:
    """Whether torch finds a GPU; `None` if it is not loaded, which takes seconds."""
    torch = sys.modules.get("torch")
    return None if torch is None else bool(torch.cuda.is_available())
