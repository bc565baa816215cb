"""This file holds how much memory a model takes on each backend, told from its configuration.

Estimates follow the layouts of the backends; their factors were fitted to `python -m bench memory`, which prints both
beside each other. The bytes are those that a process must have for itself: pages of a mapped file are left out, since
the system takes them back when it needs them.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat.config import ModelConfig
from nanochat.cost import cost, leaf_bytes
from nanochat.errors import InputError
from nanochat.ops import Storage
from nanochat.shapes import shapes
from nanochat.weights import Spec, named_leaves

__all__ = ["KNOWN", "needed_bytes", "runtime_bytes"]

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
        Tokens of each text, the prompt and the answer.
    batch : int
        Texts at once.
    kv_cache : {"float32", "float16", "int8"}
        See `nanochat.ops.Slot`.

    Raises
    ------
    InputError
        If there is no such backend, or the model has no such context.
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
        loading = max(loading, kept + plan.preparing(spec))
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
    kept, preparing : function
        For a leaf that is prepared, and for one that is being prepared.
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
    preparing: Callable[[Spec], int]
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
        preparing=lambda spec: 2 * _kept_by_torch(spec),
        module="torch",
        runtime=160 * _MB,
        unpacked=6,
        per_feature=27,
        per_product=12,
    ),
    "mlx": _Plan(
        kept=_kept_by_mlx,
        # Codes of 8 bits are moved in 16.
        preparing=lambda spec: (4 if spec.kind == "int8" else 2) * _kept_by_mlx(spec),
        module="mlx.core",
        runtime=20 * _MB,
        per_feature=34,
    ),
    "numba": _Plan(
        kept=_kept_by_numba,
        preparing=_kept_by_numba,
        module="numba",
        runtime=65 * _MB,
        per_feature=20,
    ),
    "reference": _Plan(
        kept=_kept_by_reference,
        preparing=_kept_by_reference,
        module="nanochat.backends.reference",
        runtime=40 * _MB,
        # As float64 while they are multiplied.
        unpacked=8.5,
        per_feature=40,
        per_product=12,
    ),
    "onnx": _Plan(
        kept=lambda spec: 2 * leaf_bytes(spec),
        preparing=lambda spec: 2 * leaf_bytes(spec),
        # The graph as objects, as a file in memory, and as the session reads and arranges it.
        loading=lambda spec: int((11 if spec.kind == "int8" else 5.9) * leaf_bytes(spec)),
        module="onnxruntime",
        runtime=100 * _MB,
        per_feature=32,
    ),
    "onnx-file": _Plan(
        # In the session, and as the weights of the model.
        kept=lambda spec: 3 * leaf_bytes(spec),
        preparing=lambda spec: 3 * leaf_bytes(spec),
        module="onnxruntime",
        runtime=100 * _MB,
        per_feature=32,
    ),
}

# The backends of which something is known.
KNOWN = tuple(_BACKENDS)
