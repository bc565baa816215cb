"""This file holds how a training pass runs its layers: compiled, and computed again where memory is short."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nanochat.errors import TrainingError
from nanochat.model import LayerRunner, run_layer

__all__ = ["compiled_layer", "compiling", "recomputed"]

_MOST_VERSIONS = 256


def compiled_layer(**options: Any) -> LayerRunner:
    """`run_layer` through ``torch.compile``, which does its work in the first calls: make them inside `compiling`.

    One version serves all layers of a kind, so a deep model takes no longer to start than a shallow one. `options` are
    more of ``torch.compile``.
    """
    # Torch's own place is emptied when the machine starts.
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches / "torchinductor"))
    # Whatever varies in a run (length, precision, kind of layer) has a version of its own, and none is left out.
    versions = {"dynamic": False, "recompile_limit": _MOST_VERSIONS, "isolate_recompiles": True}
    compile_function: Any = torch.compile
    try:
        run: LayerRunner = compile_function(run_layer, **versions, **options)
    except RuntimeError as error:
        # Of a version of Python that it does not know.
        raise _refusal(error) from error

    def layer(x: Tensor, *others: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
        # The first layer's streams are one, seen several times: another layout would be another version.
        return run(x.contiguous(), *others)

    return layer


@contextmanager
def compiling() -> Iterator[None]:
    """Report that `torch.compile` fails, usually for want of a compiler, as something that its user can mend."""
    try:
        with warnings.catch_warnings():
            # Of what torch uses itself.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings(
                "ignore", r"The \.grad attribute of a Tensor that is not a leaf"
            )
            yield
    except RuntimeError as error:
        # By name: importing the classes takes a second and a half, which a run without them need not wait for.
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        raise _refusal(error) from error


def recomputed(layer: LayerRunner) -> LayerRunner:
    """The same, which keeps its input only, and is computed again for its gradient."""
    # Nothing in a layer is random.
    return partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)


def _refusal(error: RuntimeError) -> TrainingError:
    lines = str(error).splitlines()
    # Behind the command, a compiler's output; the first line does for everything else.
    reason = next((line for line in lines if "error: " in line), lines[0])
    return TrainingError(
        f"torch.compile cannot run here ({reason.strip()}): install a C++ compiler, such as g++, with Python's "
        "headers, or pass --no-compile (compile_model=False in Python), which starts at once and trains several times "
        "more slowly"
    )
