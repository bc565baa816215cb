"""This file holds the GGUF export of any model, exact to the last bit, and its reader.

A model that an architecture of the unmodified llama.cpp computes is written as that one. Any other is written as
``nanochat``, which any GGUF tool can read, and this package run.
"""

from pathlib import Path
from typing import Literal

from nanochat.checkpoint import require_complete, require_legal
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, InputError, SaveError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.container_writer import Progress, write_container
from nanochat.export.gguf.foreign import load_foreign_gguf
from nanochat.export.gguf.metadata import (
    GOLDEN,
    is_ours,
    new_metadata,
    read_config,
    read_tokenizer,
)
from nanochat.export.gguf.tensors import (
    ARCHITECTURE,
    OutType,
    new_tensors,
    read_leaves,
    require_exact,
)
from nanochat.export.source import Source
from nanochat.export.stock.architectures import obstacles, stock_architecture
from nanochat.export.transform import with_float16_tables, without_ahead
from nanochat.files import atomic_file
from nanochat.proof.golden import Golden, digest, from_json
from nanochat.text.codec import TextCodec
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import Stored, Weights, named_leaves

__all__ = ["gguf_architecture", "gguf_golden", "gguf_licence", "load_gguf", "write_gguf"]

_RUNTIMES = ("auto", "llama.cpp", "nanochat")


def write_gguf(
    path: Path,
    source: Source,
    *,
    outtype: OutType = "tq2_0",
    tables: Literal["q8_0", "f16"] | None = None,
    runtime: str = "auto",
    progress: Progress | None = None,
) -> str:
    """Write a model to one file, read it back, and put it in place if it is the same model.

    All types of ternary matrices hold the same codes and scales: TQ2_0 (2.06 bits a weight) is fast on CPUs, TQ1_0
    (1.69) small, Q2_0 (2.25) runs on NVIDIA GPUs and has blocks of 64, F16 (16) is for tools that know no other.

    Parameters
    ----------
    path : Path
        The file to write or replace.
    source : Source
        The model.
    outtype : {"tq2_0", "tq1_0", "q2_0", "f16"}
        Type of ternary matrices.
    tables : {"q8_0", "f16"}, optional
        Type of embedding and head. By default the model's own, kept exactly. F16 rounds any other, and the file holds
        the model of `nanochat.export.transform.with_float16_tables`.
    runtime : {"auto", "llama.cpp", "nanochat"}
        Who must be able to run it. By default, llama.cpp if it can and nothing of the model is left out. For llama.cpp,
        heads that predict further tokens are left out: only training uses them.
    progress : callable, optional
        Called with the tensors written and the tensors to write.

    Returns
    -------
    str
        The architecture: "nanochat", or one of llama.cpp's.

    Raises
    ------
    ConfigError
        If the type cannot hold the model exactly, llama.cpp must and cannot run it, with every reason, or the tokenizer
        is another program's.
    FormatError
        If the tokenizer has more tokens than the model.
    InputError, ShapeError, NumericError
        As for `nanochat.checkpoint.save`.
    SaveError
        If the file cannot be written; one that stood there is untouched.
    """
    require_complete(source.config, source.weights)
    architecture = gguf_architecture(source.config, runtime=runtime)
    if architecture != ARCHITECTURE:
        source = without_ahead(source)
    source = _with_tables(source, tables)
    require_exact(source.config, outtype)
    tokenizer = _own_tokenizer(source)
    with atomic_file(path) as new:
        write_container(
            new,
            new_metadata(source, tokenizer, architecture, outtype=outtype),
            new_tensors(source.weights, architecture, outtype=outtype, half_tables=tables == "f16"),
            progress=progress,
        )
        _require_same(source.golden, load_gguf(new)[1], path)
    return architecture


def gguf_architecture(config: ModelConfig, *, runtime: str = "auto") -> str:
    """The architecture that `write_gguf` gives to a model.

    Raises
    ------
    ConfigError
        If llama.cpp must be able to run it and cannot, with every reason.
    InputError
        If there is no such runtime.
    """
    if runtime not in _RUNTIMES:
        raise InputError(
            f"runtime={runtime!r} runs no GGUF file: choose one of {', '.join(_RUNTIMES)}"
        )
    if runtime == "auto":
        loses = config.num_ahead > 0 or bool(obstacles(config, "llama.cpp"))
        runtime = ARCHITECTURE if loses else "llama.cpp"
    return ARCHITECTURE if runtime == ARCHITECTURE else stock_architecture(config, "llama.cpp")


def load_gguf(path: str | Path) -> tuple[ModelConfig, Weights[Stored], TextCodec]:
    """Read what `write_gguf` has written: equal codes and scales, float32 leaves as views of the file.

    A file of another program is read as `nanochat.export.gguf.foreign` says.

    Raises
    ------
    FormatError
        If the file is missing, truncated, corrupt, too new (`VersionError`), or holds no model that can be read.
    ConfigError
        If the configuration in it cannot work.
    ShapeError
        If a tensor does not have the shape that the configuration asks for.
    NumericError
        If a value is not finite or a code is illegal.
    """
    path = Path(path)
    file = read_gguf(path)
    if not is_ours(file.metadata):
        return load_foreign_gguf(path, file)
    architecture = file.metadata.get("general.architecture")
    config = read_config(path, file.metadata)
    if architecture != ARCHITECTURE and (
        obstacles(config, "llama.cpp") or architecture != stock_architecture(config, "llama.cpp")
    ):
        raise FormatError(
            f"{path}: architecture is {architecture!r:.80}, which is not that of its configuration: "
            "export the model again with nanochat-ternary"
        )
    weights = read_leaves(path, config, str(architecture), file.tensors)
    for name, leaf in named_leaves(weights):
        require_legal(name, leaf)
    return config, weights, read_tokenizer(path, file.metadata, config.vocab_size)


def gguf_golden(path: str | Path) -> Golden | None:
    """The golden record in a file; `None` if it has none.

    Raises
    ------
    FormatError
        If the file is no GGUF file, or the record is damaged.
    """
    path = Path(path)
    text = read_gguf(path).metadata.get(GOLDEN)
    if text is None:
        return None
    return from_json(str(text), f"{path}, {GOLDEN}")


def gguf_licence(path: str | Path) -> str | None:
    """The SPDX identifier that a file gives as the licence of its weights.

    Raises
    ------
    FormatError
        If the file is no GGUF file.
    """
    licence = read_gguf(Path(path)).metadata.get("general.license")
    return licence if isinstance(licence, str) and licence else None


def _own_tokenizer(source: Source) -> Tokenizer:
    tokenizer = source.tokenizer
    if not isinstance(tokenizer, Tokenizer):
        raise ConfigError(
            f"{source.name} has another program's tokenizer: a GGUF file can hold only those of this package, which "
            "llama.cpp is known to run alike; export ONNX, MLX or HF, which keep its tokenizer.json"
        )
    if tokenizer.vocab_size > source.config.vocab_size:
        raise FormatError(
            f"{source.name}: {tokenizer.vocab_size} tokens, more than the {source.config.vocab_size} of the "
            "model: pass the model's own tokenizer"
        )
    return tokenizer


def _with_tables(source: Source, tables: Literal["q8_0", "f16"] | None) -> Source:
    if tables == "q8_0" and source.config.table_format != "int8":
        raise ConfigError(
            'table_format="dense": Q8_0 would round embedding and head to 8 bits, which changes the model; pass '
            "tables=f16, leave the option out, or save the model with 8-bit tables"
        )
    return with_float16_tables(source) if tables == "f16" else source


def _require_same(golden: Golden, read: Weights[Stored], path: Path) -> None:
    for name, leaf in named_leaves(read):
        if golden.tensors[name] != digest(leaf):
            raise SaveError(
                f"{path}: {name} is not read back as it was written; test the disk, and write it again"
            )
