"""This file holds how much memory is free for this process, and the refusal of a model that does not fit."""

import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from nanochat.config import ModelConfig
from nanochat.cost import cost, leaf_bytes
from nanochat.errors import InputError, MemoryShortageError
from nanochat.ops import Storage
from nanochat.shapes import shapes
from nanochat.weights import Spec, named_leaves

__all__ = [
    "KNOWN",
    "free_bytes",
    "group_bytes",
    "needed_bytes",
    "require_free",
    "require_room",
    "runtime_bytes",
]

_LOGGER = logging.getLogger(__name__)

# Bytes of address space that a model takes beyond its memory: stacks of threads, and pieces in which compiled code and
# small arrays are allocated. With 70 MB left, LLVM ends the process; with 115 MB, a small model runs on numba.
_ADDRESSES = 2**27
# Tokens of a prompt and its answer for which there must be room.
_SHORT = 256


def free_bytes(*, root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take: of the machine, of its container, of its own limits; `None` if unknown.

    Swap is not counted: a model that lies there does not run, it waits. ``proc`` and ``sys`` of Linux are in `root`.
    """
    try:
        found: list[int | None] = [psutil.virtual_memory().available, group_bytes(root)]
        found += _own_limits()
    # What psutil meets on systems that tell it nothing, or something else than it knows.
    except (psutil.Error, OSError, RuntimeError, ValueError) as error:
        _LOGGER.debug("free memory is unknown (%s), so no model is refused", error)
        return None
    return max(0, min(number for number in found if number is not None))


def group_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that the control groups of this process leave it; `None` without a limit.

    A group may take what it does not use yet, and what it caches of files; so must all groups above it.
    """
    mounts = root / "sys/fs/cgroup"
    found: list[int] = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            # Beside groups of the first version, those of the second are one folder below.
            for mount in (mounts, mounts / "unified"):
                found += _left(mount, path, ("memory.max", "memory.current"), "")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            found += _left(mounts / "memory", path, names, "total_")
    return min(found, default=None)


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
    """
    free = free_bytes() if free is None else free
    if free is None:
        return
    short = min(_SHORT, config.context_length)
    needed = _with_runtime(config, backend, short, kv_cache)
    if needed > free:
        fixes = [*_fixes(config, backend, kv_cache, short, free, others)]
        fixes += ["close other programs", "choose a smaller model"]
        raise MemoryShortageError(
            f"{name} needs about {_gigabytes(needed)} on backend {backend.removesuffix('-file')}, and "
            f"{_gigabytes(free)} of memory are free: {', '.join(fixes[:-1])}, or {fixes[-1]}"
        )
    # More work than that of `short` is counted for no text: a prompt is read in parts.
    longest = cost(config, context=config.context_length, kv_cache=kv_cache)
    remembered = longest.kv_bytes_per_token * (config.context_length - short)
    if needed + remembered > free:
        tokens = short + (free - needed) // longest.kv_bytes_per_token
        smaller = "" if kv_cache == "int8" else "kv_cache='int8' takes about a quarter of it; "
        _LOGGER.warning(
            "%s: a text of all %d tokens of its context needs %s more than the %s of memory that are free; about %d "
            "tokens fit: %sclose other programs, or keep texts short",
            name,
            config.context_length,
            _gigabytes(needed + remembered - free),
            _gigabytes(free),
            tokens,
            smaller,
        )


def _fixes(
    config: ModelConfig,
    backend: str,
    kv_cache: Storage,
    context: int,
    free: int,
    others: Iterable[str],
) -> Iterator[str]:
    """What would be small enough."""
    narrow = _with_runtime(config, backend, context, "int8")
    if kv_cache != "int8" and narrow <= free and not backend.startswith("onnx"):
        yield f"pass kv_cache='int8' ({_gigabytes(narrow)})"
    sizes = {
        other: _with_runtime(config, other, context, kv_cache)
        for other in others
        if other in KNOWN and other != backend
    }
    smallest = min(sizes, key=lambda other: sizes[other], default=None)
    if smallest is not None and sizes[smallest] <= free:
        yield f"choose backend {smallest} ({_gigabytes(sizes[smallest])})"


def _with_runtime(config: ModelConfig, backend: str, context: int, kv_cache: Storage) -> int:
    model = needed_bytes(config, backend, context=context, kv_cache=kv_cache)
    return model + runtime_bytes(backend)


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


def _own_limits() -> Iterator[int]:
    """What the limits of this process leave it, where there are any."""
    if not hasattr(psutil.Process, "rlimit"):
        return
    process = psutil.Process()
    used = process.memory_info()
    limits = ((psutil.RLIMIT_AS, used.vms + _ADDRESSES), (psutil.RLIMIT_DATA, used.data))
    for limit, taken in limits:
        soft, _ = process.rlimit(limit)
        if soft != psutil.RLIM_INFINITY:
            yield soft - taken


def _left(mount: Path, path: str, names: tuple[str, str], prefix: str) -> Iterator[int]:
    """What each group from the innermost on leaves; folders that a container does not see are passed over."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
    for count in range(len(parts), -1, -1):
        group = mount.joinpath(*parts[:count])
        limit, current = (_text(group / name).strip() for name in names)
        if limit.isdigit() and current.isdigit():
            statistics = dict(
                line.split(" ", 1) for line in _text(group / "memory.stat").splitlines()
            )
            files = (statistics.get(f"{prefix}{name}_file", "") for name in ("active", "inactive"))
            yield int(limit) - int(current) + sum(int(n) for n in files if n.isdigit())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# What `Engine` reads of a prompt at once, in tokens.
_CHUNK = 512
# Rows that the Numba backend lays out together, and columns that MLX gives a scale of their own.
_TILE, _GROUP = 32, 128
_FLOAT = 4


def needed_bytes(
    config: ModelConfig,
    backend: str,
    *,
    context: int,
    batch: int = 1,
    kv_cache: Storage = "float32",
) -> int:
    """About what a model on a backend and its work take at most, from loading to the end of a text.

    What the backend itself takes, its libraries and what it compiles, is not counted.

    Parameters
    ----------
    backend : str
        A name for `nanochat.backends.get`; "onnx" for a model that is exported when it is loaded, or "onnx-file" for
        one that is a graph already.
    context : int
        Tokens of each of `batch` texts, the prompt and the answer.
    """
    if backend not in _BACKENDS:
        raise InputError(
            f"nothing is known of the memory of backend {backend!r}: choose one of {', '.join(_BACKENDS)}"
        )
    plan = _BACKENDS[backend]
    costs = cost(config, context=context, kv_cache=kv_cache)
    specs = [spec for _, spec in named_leaves(shapes(config))]
    # While a leaf is prepared, those before it are there already.
    kept = loading = 0
    for spec in specs:
        loading = max(loading, kept + plan.copies(spec) * plan.kept(spec))
        kept += plan.kept(spec)
    loading = max(loading, sum(map(plan.loading, specs)))
    remembered = batch * (context * costs.kv_bytes_per_token + costs.state_bytes)
    return max(loading, kept + remembered + _work(plan, config, specs, context))


def runtime_bytes(backend: str) -> int:
    """What the libraries and the code of a backend are going to take; 0 if they are there already."""
    plan = _BACKENDS[backend]
    return 0 if plan.module in sys.modules else plan.runtime


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a backend takes, in bytes.

    Parameters
    ----------
    kept, copies : function
        For a leaf that is prepared, and how often as much while it is being prepared.
    loading : function
        A leaf's share of what loading takes at its height, where everything is loaded at once.
    module, runtime : str and int
        What the backend is imported as, and what it takes with all else that a first model imports or compiles.
    unpacked : float
        For each number of a matrix that is being multiplied.
    per_feature, per_product : int
        For each token and feature of the widest activation, and of the integer sums of the widest linear.
    """

    kept: Callable[[Spec], int]
    copies: Callable[[Spec], int] = lambda _: 1
    module: str
    runtime: int
    loading: Callable[[Spec], int] = lambda _: 0
    unpacked: float = 0
    per_feature: int
    per_product: int = 0


def _work(plan: _Plan, config: ModelConfig, specs: Sequence[Spec], context: int) -> int:
    """Bytes of activations and of unpacked matrices, at the widest layer or at the head."""
    tokens = min(context, _CHUNK)
    linears = [spec for spec in specs if spec.kind == "ternary"]
    widest = config.num_streams * config.width + max(max(spec.shape) for spec in linears)
    products = max(math.prod(spec.shape) // spec.activation_block for spec in linears)
    layer = tokens * (plan.per_feature * widest + plan.per_product * products)
    layer += int(plan.unpacked * max(math.prod(spec.shape) for spec in linears))
    # A dense table is there in float32, and unpacked by nobody.
    tables = (math.prod(spec.shape) for spec in specs if spec.kind == "int8")
    return max(layer, int(plan.unpacked * max(tables, default=0)))


def _kept_by_numba(spec: Spec) -> int:
    rows = spec.shape[0]
    whole = rows if spec.kind == "dense" else -(-rows // _TILE) * _TILE
    # A twentieth is left of the pieces in which memory is taken.
    return int(1.05 * whole * leaf_bytes(spec) / rows)


def _kept_by_torch(spec: Spec) -> int:
    if spec.kind == "dense":
        return _FLOAT * math.prod(spec.shape)
    rows, columns = spec.shape
    if spec.kind == "int8":
        return rows * (columns + _FLOAT)
    return rows * (-(-columns // 4) + columns // spec.weight_block * _FLOAT)


def _kept_by_mlx(spec: Spec) -> int:
    if spec.kind == "dense":
        return _FLOAT * math.prod(spec.shape)
    rows, columns = spec.shape
    groups = -(-columns // _GROUP)
    # A scale and a bias.
    return rows * groups * (_GROUP // (4 if spec.kind == "ternary" else 1) + 2 * _FLOAT)


def _kept_by_reference(spec: Spec) -> int:
    # Tables and scales are used where they lie, in the file.
    if spec.kind == "int8":
        return 0
    return math.prod(spec.shape) * (_FLOAT if spec.kind == "dense" else 1)


_MB = 10**6
_BACKENDS = {
    "torch": _Plan(
        kept=_kept_by_torch,
        copies=lambda _: 2,
        module="torch",
        runtime=160 * _MB,
        unpacked=6,
        per_feature=27,
        per_product=12,
    ),
    "mlx": _Plan(
        kept=_kept_by_mlx,
        # Codes of 8 bits are moved in 16.
        copies=lambda spec: 4 if spec.kind == "int8" else 2,
        module="mlx.core",
        runtime=20 * _MB,
        per_feature=34,
    ),
    "numba": _Plan(
        kept=_kept_by_numba,
        module="numba",
        runtime=65 * _MB,
        per_feature=20,
    ),
    "reference": _Plan(
        kept=_kept_by_reference,
        module="nanochat.backends.reference.ops",
        runtime=40 * _MB,
        # As float64 while they are multiplied.
        unpacked=8.5,
        per_feature=40,
        per_product=12,
    ),
    "onnx": _Plan(
        kept=lambda spec: 2 * leaf_bytes(spec),
        # The graph as objects, as a file in memory, and as the session reads and arranges it.
        loading=lambda spec: int((4.5 if spec.kind == "int8" else 5.1) * leaf_bytes(spec)),
        module="onnxruntime",
        runtime=100 * _MB,
        per_feature=32,
    ),
    "onnx-file": _Plan(
        # In the session, and as the weights of the model.
        kept=lambda spec: 3 * leaf_bytes(spec),
        module="onnxruntime",
        runtime=100 * _MB,
        per_feature=32,
    ),
}

# The backends of which something is known.
KNOWN = tuple(_BACKENDS)
