"""This file holds the formats that a model can be exported to: how each is written, and what then runs it.

`export_model` writes one aside, runs it, compares it with the model, and only then puts it in place.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from nanochat import backends
from nanochat.errors import BackendError, ConfigError, FormatError, InputError, SaveError
from nanochat.export.mhc import write_mhc
from nanochat.export.source import Source
from nanochat.export.transform import with_float16_tables
from nanochat.files import atomic_directory, exists
from nanochat.generation import Engine
from nanochat.init import freeze
from nanochat.loading import load_parts
from nanochat.proof.manifest import NAME, read_manifest, write_manifest
from nanochat.proof.parity import (
    Artefact,
    Parity,
    Rounding,
    check_parity,
    greedy,
    reference_backend,
)

__all__ = [
    "FORMATS",
    "Choices",
    "Exported",
    "Format",
    "Progress",
    "Reloaded",
    "export_model",
]

# Called with the tensors written and the tensors to write.
Progress = Callable[[int, int], None]

Stock = TypeVar("Stock", bound=Literal["llama.cpp", "mlx-lm", "transformers"])

_PARITY = "parity.json"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a user may choose about a format; each has a meaning for some formats only.

    Parameters
    ----------
    outtype : {"tq2_0", "tq1_0", "q2_0", "f16"}
        GGUF: type of ternary matrices.
    tables : {"q8_0", "f16"}, optional
        GGUF: type of embedding and head; by default the one that is exact.
    runtime : {"auto", "llama.cpp", "mlx-lm", "transformers", "nanochat"}
        GGUF, MLX and HF: who must be able to run it; "auto" is the stock runtime of GGUF and MLX where it can, else
        this package, whose directory is what the Hub is given.
    mhc : bool
        GGUF: whether the mHC coefficients are written to an ``.mhc`` file beside it, too; see `nanochat.export.mhc`.
    target : {"ort", "standard"}
        ONNX: ONNX Runtime with its own operators, or the operators of the standard alone.
    """

    outtype: Literal["tq2_0", "tq1_0", "q2_0", "f16"] = "tq2_0"
    tables: Literal["q8_0", "f16"] | None = None
    runtime: Literal["auto", "llama.cpp", "mlx-lm", "transformers", "nanochat"] = "auto"
    mhc: bool = False
    target: Literal["ort", "standard"] = "ort"


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format of `nanochat-export`.

    Parameters
    ----------
    suffix : str
        Of its file; empty for a folder.
    choices : tuple of str
        Fields of `Choices` that have a meaning.
    write : callable
        Write a model to a path; the result is what it was written as, in the words of the format.
    run : callable
        What runs the path, of a model that was written as that.
    types : callable
        How "ternary", "int8", "float32" and "float16" leaves are written.
    """

    suffix: str
    choices: tuple[str, ...]
    write: Callable[[Path, Source, Choices, Progress | None], str]
    run: Callable[[Path, Source, str], Artefact]
    types: Callable[[Choices, str], Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export_model` has written.

    Parameters
    ----------
    path : Path
        The file or folder.
    kind, written_as : str
        Its format, and what the model is in it, such as the architecture.
    bytes : int
        Size of all its files.
    types : mapping
        How "ternary", "int8", "float32" and "float16" leaves are written.
    parity : Parity or None
        How it compares with the model; `None` if that was not asked for.
    """

    path: Path
    kind: str
    written_as: str
    bytes: int
    types: Mapping[str, str]
    parity: Parity | None


class Reloaded:
    """An export that is read back and run by this package: an `Artefact`.

    Parameters
    ----------
    path : Path
        Anything that `nanochat.loading.load_parts` reads.
    backend : str, optional
        See `nanochat.backends.choose`; absent is the one that it is compared with, so that only the file can differ.
    """

    tolerance = 3e-2
    rounding: Rounding = "same"

    def __init__(self, path: Path, *, backend: str | None = None) -> None:
        parts = load_parts(path)
        if backend is None:
            name, ops = reference_backend(parts.config)
        else:
            name, _ = backends.choose(backend)
            ops = backends.get(name)
        self._engine = Engine(parts.config, ops.prepare(freeze(parts.weights)), ops)
        self.runtime = f"nanochat-ternary, {name}"

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Artefact.logits`."""
        return self._engine.logits(ids)

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        """See `Artefact.greedy`."""
        return greedy(self._engine, ids, num_tokens=num_tokens)


def export_model(
    source: Source,
    out: Path,
    *,
    kind: str,
    choices: Choices,
    verify: bool = True,
    progress: Progress | None = None,
) -> Exported:
    """Write a model in a format, complete and verified or not at all.

    Parameters
    ----------
    out : Path
        File or folder to write or replace.
    kind : str
        One of `FORMATS`.
    verify : bool
        Run what was written and compare it with the reference, on fixed prompts; the report stands beside it as JSON.
        Without, the report of what stood there before goes.

    Raises
    ------
    ConfigError
        If the format cannot hold the model, with the reasons.
    InputError
        If `out` is a folder with other things in it, a file without the format's suffix, or one where the other must
        be.
    SaveError
        If it cannot be written, or does not compute what the model does; what stood there before is untouched.
    """
    form = FORMATS[kind]
    _check_path(out, form)
    if choices.tables == "f16":
        # What the file holds, and must compute.
        source = with_float16_tables(source)
    old = _old_files(out) if not form.suffix else frozenset()
    # A file's report is its neighbour, a folder's is in it.
    folder = out.parent if form.suffix else out
    report_name = f"{out.name}.{_PARITY}" if form.suffix else _PARITY
    with atomic_directory(folder) as aside:
        new = aside / out.name if form.suffix else aside
        written_as = form.write(new, source, choices, progress)
        if not form.suffix:
            write_manifest(new, source, kind=_folder_kind(kind, written_as))
        files = [path for path in aside.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        parity = None
        if verify:
            parity = check_parity(source, form.run(new, source, written_as))
            if not parity.ok:
                raise SaveError(
                    f"{out} would not compute what {source.name} does, and is not written ({parity}): report this model"
                )
            report = json.dumps(parity.to_dict(), indent=2) + "\n"
            (aside / report_name).write_text(report, encoding="utf-8")
        kept = {path.relative_to(aside).as_posix() for path in files}
    for name in old - kept:
        (out / name).unlink(missing_ok=True)
    if not verify:
        (folder / report_name).unlink(missing_ok=True)
    return Exported(
        path=out,
        kind=kind,
        written_as=written_as,
        bytes=size,
        types=form.types(choices, written_as),
        parity=parity,
    )


def _check_path(out: Path, form: Format) -> None:
    if form.suffix and out.suffix != form.suffix:
        raise InputError(
            f"{out} does not end in {form.suffix}, by which other programs know such a file: pass {out.name}"
            f"{form.suffix} or alike"
        )
    if form.suffix and out.is_dir():
        raise InputError(f"{out} is a folder, and this format is a file: pass another path")
    if exists(out.parent) and not out.parent.is_dir():
        raise SaveError(f"cannot write {out}: {out.parent} is no folder; pass another path")


def _old_files(folder: Path) -> frozenset[str]:
    """The files of an earlier export in `folder`, which the new one replaces."""
    if not exists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return frozenset()
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, and this format is a folder: pass another path")
    try:
        manifest = read_manifest(folder)
    except (ConfigError, FormatError):
        manifest = None
    if manifest is None:
        raise InputError(
            f"{folder} has files that no export has written (no {NAME}): pass a new folder, or empty it"
        )
    return frozenset(manifest.files)


def _folder_kind(kind: str, written_as: str) -> str:
    """What `nanochat.loading` must read a folder as."""
    if written_as == "nanochat":
        return "nanochat"
    return "transformers" if kind == "hf" else kind


# Late imports: each format needs packages that the others do not.


def _write_gguf(path: Path, source: Source, choices: Choices, progress: Progress | None) -> str:
    from nanochat.export.gguf.write import write_gguf

    if choices.mhc:
        write_mhc(path.with_suffix(".mhc"), source.config, source.weights)
    return write_gguf(
        path,
        source,
        outtype=choices.outtype,
        tables=choices.tables,
        runtime=_runtime(choices, "llama.cpp"),
        progress=progress,
    )


def _run_gguf(path: Path, source: Source, written_as: str) -> Artefact:
    if written_as == "nanochat":
        return Reloaded(path)
    from nanochat.export.gguf.llama_cpp import LlamaCpp

    try:
        return LlamaCpp(path, context=min(source.config.context_length, 512))
    except BackendError as error:
        return _read_back(path, "llama.cpp", error)


def _gguf_types(choices: Choices, written_as: str) -> dict[str, str]:
    del written_as
    tables = {"q8_0": "Q8_0", "f16": "F16", None: "Q8_0"}[choices.tables]
    return {
        "ternary": choices.outtype.upper(),
        "int8": tables,
        "float32": "F32",
        "float16": "F16",
    }


def _write_onnx(path: Path, source: Source, choices: Choices, progress: Progress | None) -> str:
    from nanochat.export.onnx.genai import write_genai

    write_genai(path, source, target=choices.target, progress=progress)
    return choices.target


def _run_onnx(path: Path, source: Source, written_as: str) -> Artefact:
    del source, written_as
    from nanochat.export.onnx.engine import OnnxEngine

    return OnnxEngine(path / "model.onnx")


def _onnx_types(choices: Choices, written_as: str) -> dict[str, str]:
    del written_as
    if choices.target == "standard":
        return {
            "ternary": "UINT2, DequantizeLinear",
            "int8": "UINT8, DequantizeLinear",
            "float32": "float32",
            "float16": "float16",
        }
    return {
        "ternary": "MatMulNBits, 2 bits, blocks of 128",
        "int8": "MatMulNBits, 8 bits, blocks of 128",
        "float32": "float32",
        "float16": "float16",
    }


def _write_web(path: Path, source: Source, choices: Choices, progress: Progress | None) -> str:
    del choices
    from nanochat.export.web.write import write_web

    write_web(path, source, progress=progress)
    return "web"


def _write_mlx(path: Path, source: Source, choices: Choices, progress: Progress | None) -> str:
    from nanochat.export.stock.mlx import write_mlx

    return write_mlx(path, source, runtime=_runtime(choices, "mlx-lm"), progress=progress)


def _run_mlx(path: Path, source: Source, written_as: str) -> Artefact:
    del source
    if written_as == "nanochat":
        return Reloaded(path)
    try:
        from nanochat.export.stock.mlx_run import MlxLm
    except ModuleNotFoundError as error:
        return _read_back(path, "mlx-lm", error)
    return MlxLm(path)


def _mlx_types(choices: Choices, written_as: str) -> dict[str, str]:
    del choices
    if written_as == "nanochat":
        return _OWN_TYPES
    return {
        "ternary": "affine, 2 bits",
        "int8": "affine, 8 bits",
        "float32": "float32",
        "float16": "float16",
    }


def _write_hf(path: Path, source: Source, choices: Choices, progress: Progress | None) -> str:
    from nanochat.export.stock.transformers import write_transformers

    runtime = _runtime(choices, "transformers")
    return write_transformers(path, source, runtime=runtime, progress=progress)


def _run_hf(path: Path, source: Source, written_as: str) -> Artefact:
    del source
    if written_as == "nanochat":
        return Reloaded(path)
    try:
        from nanochat.export.stock.transformers_run import Transformers
    except ModuleNotFoundError as error:
        return _read_back(path, "transformers", error)
    return Transformers(path)


def _hf_types(choices: Choices, written_as: str) -> dict[str, str]:
    del choices
    if written_as == "nanochat":
        return _OWN_TYPES
    return {"ternary": "float16", "int8": "float32", "float32": "float32", "float16": "float16"}


_OWN_TYPES = {
    "ternary": "2 bits, float16 scales",
    "int8": "int8, float16 scales",
    "float32": "float32",
    "float16": "float16",
}


def _runtime(choices: Choices, stock: Stock) -> Stock | Literal["auto", "nanochat"]:
    if choices.runtime == stock:
        return stock
    if choices.runtime == "auto" or choices.runtime == "nanochat":
        return choices.runtime
    raise InputError(
        f"runtime={choices.runtime!r} does not run this format: choose auto, {stock} or nanochat"
    )


def _read_back(path: Path, runtime: str, error: Exception) -> Reloaded:
    """Run a stock export without its runtime, which only shows that it was written right."""
    _LOGGER.warning(
        "%s cannot run here (%s): the export is read back and compared, but not run in it",
        runtime,
        error,
    )
    return Reloaded(path)


FORMATS: Mapping[str, Format] = {
    "gguf": Format(
        suffix=".gguf",
        choices=("outtype", "tables", "runtime", "mhc"),
        write=_write_gguf,
        run=_run_gguf,
        types=_gguf_types,
    ),
    "onnx": Format(
        suffix="", choices=("target",), write=_write_onnx, run=_run_onnx, types=_onnx_types
    ),
    "mlx": Format(
        suffix="", choices=("runtime",), write=_write_mlx, run=_run_mlx, types=_mlx_types
    ),
    "hf": Format(suffix="", choices=("runtime",), write=_write_hf, run=_run_hf, types=_hf_types),
    "web": Format(suffix="", choices=(), write=_write_web, run=_run_onnx, types=_onnx_types),
}
