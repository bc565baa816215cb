"""This file holds `nanochat-export`: a model becomes one file for another runtime."""

import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from nanochat.cli.options import as_json_option
from nanochat.cli.output import format_bytes, note, print_json, print_table, write
from nanochat.cli.run import as_file_errors, run
from nanochat.errors import InputError, SaveError

if TYPE_CHECKING:
    from nanochat.config import ModelConfig
    from nanochat.export.verify import Report
    from nanochat.tokenizer import Tokenizer
    from nanochat.weights import Stored, Weights

__all__ = ["export", "main"]

_FORMATS = {
    "gguf": {"ternary": "TQ2_0", "int8": "Q8_0", "dense": "F32", "float16": "F16"},
    "onnx": {
        "ternary": "MatMulNBits, 2 bits, blocks of 128",
        "int8": "8 bits, blocks of 128",
        "dense": "float32",
        "float16": "float16",
    },
}
_EXAMPLES = """\b
Examples:
  nanochat-export --format gguf nanochat-tiny
  nanochat-export --format onnx --out build/model.onnx path/to/model
"""
# What the two are compared on.
_SAMPLE = (
    'fn main() { println!("The quick brown fox jumps over the lazy dog."); } // 0123456789\n' * 4
)
_SAMPLE_TOKENS = 32


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@click.option(
    "--format", "kind", required=True, type=click.Choice(list(_FORMATS)), help="What to write."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write or replace.  [default: the model's name, here]",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Run the file and compare its logits with the model's.",
)
@click.option(
    "--licence",
    help="SPDX identifier of the weights' licence, for GGUF.  [default: the catalog's, or unknown]",
)
@click.option(
    "--exit-threshold",
    type=click.FloatRange(0, 1, min_open=True),
    help="For ONNX: 1 exports all steps of a looped model that may leave its loop early.",
)
@as_json_option
def export(
    model: str,
    *,
    kind: Literal["gguf", "onnx"],
    out: Path | None,
    verify: bool,
    licence: str | None,
    exit_threshold: float | None,
    as_json: bool,
) -> None:
    """Write MODEL to one file, print the format of its tensors, and compare the file with the model.

    MODEL is a directory, a .gguf file, a name that `nanochat models list` shows, or OWNER/NAME on the Hugging Face Hub.
    """
    if kind == "gguf" and exit_threshold is not None:
        raise click.UsageError("--exit-threshold is for ONNX: a GGUF file keeps the model's own")
    if kind == "onnx" and licence is not None:
        raise click.UsageError("--licence is for GGUF: an ONNX file has no place for it")
    from nanochat.lm import load_parts, tensor_classes
    from nanochat.zoo.catalog import CATALOG
    from nanochat.zoo.hub import resolve

    source = resolve(model)
    out = out or Path(f"{Path(model.partition('@')[0]).resolve().stem}.{kind}")
    if out.exists() and source.exists() and out.samefile(source):
        raise InputError(f"{out} is the model itself: pass another file as --out")
    with as_file_errors():
        config, weights, tokenizer = load_parts(source)
    name = source.stem if source.suffix == ".gguf" else Path(model).name
    if kind == "gguf":
        licence = licence or (CATALOG[model].licence if model in CATALOG else "unknown")
        _write_gguf(out, config, weights, tokenizer, source, name, licence)
    else:
        from nanochat.export.onnx import export_onnx

        export_onnx(config, weights, out, name=name, exit_threshold=exit_threshold)
    note(f"wrote {out}, {format_bytes(out.stat().st_size)}")
    formats = _FORMATS[kind]
    classes = [
        (c.name, formats.get(c.format, formats[c.kind]), c.tensors, c.parameters)
        for c in tensor_classes(config)
    ]
    report = _verify(kind, out, config, weights, tokenizer) if verify else None
    if as_json:
        fields = ("name", "format", "tensors", "parameters")
        print_json(
            {
                "model": model,
                "format": kind,
                "path": str(out),
                "bytes": out.stat().st_size,
                "tensors": [dict(zip(fields, row, strict=True)) for row in classes],
                "parity": None
                if report is None
                else {**dataclasses.asdict(report), "ok": report.ok},
            }
        )
    else:
        print_table(classes, header=("tensors", "format", "count", "parameters"))
        write(f"parity: {report or 'not checked'}", end="\n")
    if report is not None and not report.ok:
        raise SaveError(f"{out} does not compute what {model} does: do not use it ({report})")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `nanochat-export` and end the process with its exit code."""
    sys.exit(run(export, "nanochat-export", arguments))


def _write_gguf(
    path: Path,
    config: "ModelConfig",
    weights: "Weights[Stored]",
    tokenizer: "Tokenizer",
    source: Path,
    name: str,
    licence: str,
) -> None:
    from nanochat.export.gguf import write_gguf

    with tempfile.TemporaryDirectory() as folder:
        if not source.is_dir():
            tokenizer.save(folder)
        files = source if source.is_dir() else Path(folder)
        write_gguf(path, config, weights, tokenizer=files, name=name, licence=licence)


def _verify(
    kind: Literal["gguf", "onnx"],
    path: Path,
    config: "ModelConfig",
    weights: "Weights[Stored]",
    tokenizer: "Tokenizer",
) -> "Report":
    import numpy as np

    ids = [tokenizer.bos, *tokenizer.encode(_SAMPLE)]
    ids = ids[: min(_SAMPLE_TOKENS, config.context_length)]
    if kind == "onnx":
        from nanochat.export.onnx import verify_onnx

        return verify_onnx(path, config, weights, np.array([ids], np.int64))
    from nanochat.export.gguf import load_gguf
    from nanochat.export.verify import compare
    from nanochat.lm import Model

    read_config, read_weights, read_tokenizer = load_gguf(path)
    read = Model(read_config, read_weights, read_tokenizer, name=str(path))
    return compare(
        Model(config, weights, tokenizer, name="the model").logits(ids), read.logits(ids)
    )
