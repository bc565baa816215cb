"""This file holds the writer of GGUF files: any model, exact to the last bit.

A model that an architecture of the unmodified llama.cpp computes is written as that one. Any other is written as
``nanochat``, which any GGUF tool can read, and this package run.
"""

from pathlib import Path
from typing import Literal

from nanochat.bundle import Bundle
from nanochat.checkpoint import require_complete
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, InputError
from nanochat.export.format import Progress
from nanochat.export.gguf.container import write_container
from nanochat.export.gguf.metadata import new_metadata
from nanochat.export.gguf.tensors import ARCHITECTURE, OutType, new_tensors, require_exact
from nanochat.export.gguf.tokenizer import warn_of_tokenizer
from nanochat.export.stock.architectures import obstacles, stock_architecture
from nanochat.export.transform import with_float16_tables, without_ahead
from nanochat.files import atomic_file
from nanochat.proof.golden import with_golden

__all__ = ["adapted", "gguf_architecture", "write_gguf"]

_RUNTIMES = ("auto", "llama.cpp", "nanochat")


def write_gguf(
    path: Path,
    bundle: Bundle,
    *,
    outtype: OutType = "tq2_0",
    tables: Literal["q8_0", "f16"] | None = None,
    runtime: str = "auto",
    progress: Progress | None = None,
) -> str:
    """Write a model to one file, complete or not at all.

    All types of ternary matrices hold the same codes and scales: TQ2_0 (2.06 bits a weight) is fast on CPUs, TQ1_0
    (1.69) small, Q2_0 (2.25) runs on NVIDIA GPUs and has blocks of 64, F16 (16) is for tools that know no other.

    A golden record is made if the bundle has none. `tables` and `runtime` are those of `adapted`.

    Returns
    -------
    str
        The architecture: "nanochat", or one of llama.cpp's.
    """
    require_complete(bundle.config, bundle.weights)
    bundle = adapted(bundle, tables=tables, runtime=runtime)
    architecture = gguf_architecture(bundle.config, runtime=runtime)
    require_exact(bundle.config, outtype)
    warn_of_tokenizer(bundle.tokenizer)
    bundle = bundle if bundle.golden else with_golden(bundle)
    with atomic_file(path) as new:
        write_container(
            new,
            new_metadata(bundle, architecture, outtype=outtype),
            new_tensors(bundle, architecture, outtype=outtype, half_tables=tables == "f16"),
            progress=progress,
        )
    return architecture


def adapted(bundle: Bundle, *, tables: Literal["q8_0", "f16"] | None, runtime: str) -> Bundle:
    """The model that a file holds.

    Parameters
    ----------
    tables : {"q8_0", "f16"}, optional
        Type of embedding and head. By default the model's own, kept exactly. F16 rounds any other, and the file holds
        the model of `nanochat.export.transform.with_float16_tables`.
    runtime : {"auto", "llama.cpp", "nanochat"}
        Who must be able to run it. By default, llama.cpp if it can and nothing of the model is left out. For llama.cpp,
        heads that predict further tokens are left out: only training uses them.
    """
    if gguf_architecture(bundle.config, runtime=runtime) != ARCHITECTURE:
        bundle = without_ahead(bundle)
    form = bundle.config.table_format
    if tables == "q8_0" and form != "int8":
        raise ConfigError(
            f'table_format="{form}": Q8_0 would round embedding and head to 8 bits, which changes the model; pass '
            "tables=f16, leave the option out, or save the model with 8-bit tables"
        )
    return with_float16_tables(bundle) if tables == "f16" else bundle


def gguf_architecture(config: ModelConfig, *, runtime: str = "auto") -> str:
    """The architecture that `write_gguf` gives to a model."""
    if runtime not in _RUNTIMES:
        raise InputError(
            f"runtime={runtime!r} runs no GGUF file: choose one of {', '.join(_RUNTIMES)}"
        )
    if runtime == "auto":
        loses = config.num_ahead > 0 or bool(obstacles(config, "llama.cpp"))
        runtime = ARCHITECTURE if loses else "llama.cpp"
    return ARCHITECTURE if runtime == ARCHITECTURE else stock_architecture(config, "llama.cpp")
