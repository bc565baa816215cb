"""This file holds `nanochat-export`: a model becomes a file or a folder for another runtime."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from nanochat.cli.options import as_json_option
from nanochat.cli.output import format_bytes, note, print_json, print_table, write
from nanochat.cli.run import as_file_errors, run
from nanochat.errors import InputError

if TYPE_CHECKING:
    from nanochat.export.formats import Exported, Progress
    from nanochat.export.source import Source

__all__ = ["export", "main"]

# The options that have a meaning for some formats only. Repeated here because --help must not load the exporters.
_FORMATS = {
    "gguf": ("outtype", "tables", "runtime", "mhc"),
    "onnx": ("target",),
    "mlx": ("runtime",),
    "hf": ("runtime",),
    "web": (),
}
_EXAMPLES = """\b
Examples:
  nanochat-export --format gguf nanochat-tiny
  nanochat-export --format gguf --outtype q2_0 --runtime llama.cpp path/to/model
  nanochat-export --format onnx --out build/tiny-onnx nanochat-tiny
  nanochat-export --format web nanochat-tiny && python -m http.server -d nanochat-tiny-web
"""


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@click.option(
    "--format", "kind", required=True, type=click.Choice(list(_FORMATS)), help="What to write."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File or folder to write or replace.  [default: named after the model, here]",
)
@click.option(
    "--outtype",
    type=click.Choice(["tq2_0", "tq1_0", "q2_0", "f16"]),
    help="GGUF: type of ternary matrices; q2_0 is for GPUs, f16 for everything.  [default: tq2_0]",
)
@click.option(
    "--tables",
    type=click.Choice(["q8_0", "f16"]),
    help="GGUF: type of embedding and head.  [default: the one that is exact]",
)
@click.option(
    "--runtime",
    type=click.Choice(["auto", "llama.cpp", "mlx-lm", "transformers", "nanochat"]),
    help="GGUF, MLX, HF: who must run it, unmodified.  [default: auto, the format's own where it can; of HF, nanochat]",
)
@click.option(
    "--mhc",
    is_flag=True,
    default=None,
    help="GGUF: write the coefficients of static mHC to an .mhc file beside it, too.",
)
@click.option(
    "--target",
    type=click.Choice(["ort", "standard"]),
    help="ONNX: ONNX Runtime's fast operators, or those of the standard alone.  [default: ort]",
)
@click.option(
    "--unroll-loop",
    is_flag=True,
    help="Write the looped layers of a LoopLM once for every loop: larger, and any runtime can run it.",
)
@click.option(
    "--exit-threshold",
    type=click.FloatRange(0, 1, min_open=True),
    help="1 runs all loops for every token of a model whose tokens may leave early.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Run what was written and compare it with the model.",
)
@click.option(
    "--licence",
    help="SPDX identifier of the weights' licence.  [default: what the model says, or unknown]",
)
@click.option(
    "--upload-repo",
    metavar="OWNER/NAME",
    help="Upload the result to this repository of the Hugging Face Hub, with a card, as `nanochat models push` does; "
    "the weights must have a licence.",
)
@as_json_option
def export(
    model: str,
    *,
    kind: Literal["gguf", "onnx", "mlx", "hf", "web"],
    out: Path | None,
    verify: bool,
    licence: str | None,
    unroll_loop: bool,
    exit_threshold: float | None,
    upload_repo: str | None,
    as_json: bool,
    **given: str | bool | None,
) -> None:
    """Write MODEL in another format, print how its tensors are stored, and compare it with the model.

    MODEL is a directory, a .gguf or .onnx file, a name that `nanochat models list` shows, or OWNER/NAME on the Hugging
    Face Hub. The parity report stands beside the result as JSON. Nothing is written if the result computes something
    else than the model. With --upload-repo it is then verified once more, measured on all backends, and uploaded.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    for option in chosen:
        if option not in _FORMATS[kind]:
            formats = " and ".join(form for form, names in _FORMATS.items() if option in names)
            raise click.UsageError(f"--{option} is for {formats}, not for {kind}")
    from nanochat.export.formats import FORMATS, Choices, export_model
    from nanochat.loading import load_licence, load_source
    from nanochat.publish.card import is_of_the_hub
    from nanochat.publish.options import (
        Options,
        choose_licence,
        destinations,
        find_licence_file,
    )
    from nanochat.publish.publish import require_ready
    from nanochat.zoo.catalog import CATALOG
    from nanochat.zoo.hub import locate

    if upload_repo is not None:
        # Before the work that would be for nothing.
        destinations(upload_repo, Options())
    location = locate(model)
    path, name = location.path, location.name
    out = out or Path(f"{name}{FORMATS[kind].suffix or '-' + kind}")
    if out.exists() and path.exists() and out.samefile(path):
        raise InputError(f"{out} is the model itself: pass another path as --out")
    if licence is None and model in CATALOG:
        licence = CATALOG[model].licence
    text = None
    if upload_repo is not None:
        text = find_licence_file(path if path.is_dir() else path.parent)
        with as_file_errors():
            licence = choose_licence(load_licence(path) or "", licence or "", licence_file=text)
        # Beside a file, it may be another's.
        text = text if path.is_dir() or not is_of_the_hub(licence) else None
        require_ready(upload_repo, Options(), licence=licence)
    with as_file_errors():
        source = load_source(path, name=name, licence=licence)
    source = _transformed(source, unroll_loop=unroll_loop, exit_threshold=exit_threshold)
    with _progress(f"writing {out.name}") as progress:
        exported = export_model(
            source,
            out,
            kind=kind,
            choices=dataclasses.replace(Choices(), **chosen),  # type: ignore[arg-type]  # checked by click
            verify=verify,
            progress=progress,
        )
    note(f"wrote {out} ({exported.written_as}), {format_bytes(exported.bytes)}")
    if not as_json:
        print_table(_classes(source, exported), header=("tensors", "format", "count", "parameters"))
        write(f"parity: {exported.parity or 'not checked'}", end="\n")
    address = None
    if upload_repo is not None:
        address = _upload(exported, upload_repo, text, with_coefficients="mhc" in chosen)
    if as_json:
        print_json({**_describe(model, source, exported), "uploaded": address})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `nanochat-export` and end the process with its exit code."""
    sys.exit(run(export, "nanochat-export", arguments))


def _upload(
    exported: "Exported", repo: str, licence_file: Path | None, *, with_coefficients: bool
) -> str:
    """The address of the commit."""
    from nanochat.publish.options import Options
    from nanochat.publish.publish import publish

    out = exported.path
    is_file = out.is_file()
    beside = [f"{out.name}.parity.json"] if is_file and exported.parity else []
    beside += [out.with_suffix(".mhc").name] if with_coefficients else []
    options = Options(beside=beside, licence_file=licence_file)
    (published,) = publish(out, repo, options, report=note)
    note(f"uploaded to {published.commit_url}")
    return published.commit_url


def _transformed(source: "Source", *, unroll_loop: bool, exit_threshold: float | None) -> "Source":
    from nanochat.cost import cost
    from nanochat.export.transform import unroll, with_exit_threshold

    if exit_threshold is not None:
        source = with_exit_threshold(source, exit_threshold)
    if not unroll_loop:
        return source
    unrolled = unroll(source)
    before, after = (cost(s.config, context=1).stored_bytes for s in (source, unrolled))
    note(
        f"unrolled {source.config.loop_count} loops: {source.config.num_layers} layers become "
        f"{unrolled.config.num_layers}, {format_bytes(before)} become {format_bytes(after)}"
    )
    return unrolled


@contextmanager
def _progress(title: str) -> "Iterator[Progress]":
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(escape(title), total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def _classes(source: "Source", exported: "Exported") -> list[tuple[str, str, int, int]]:
    from nanochat.cost import tensor_classes

    types = exported.types
    return [
        (c.name, types.get(c.format, types.get(c.kind, c.kind)), c.tensors, c.parameters)
        for c in tensor_classes(source.config)
    ]


def _describe(model: str, source: "Source", exported: "Exported") -> dict[str, object]:
    fields = ("name", "format", "tensors", "parameters")
    rows = _classes(source, exported)
    return {
        "model": model,
        "format": exported.kind,
        "written_as": exported.written_as,
        "path": str(exported.path),
        "bytes": exported.bytes,
        "tensors": [dict(zip(fields, row, strict=True)) for row in rows],
        "parity": None if exported.parity is None else exported.parity.to_dict(),
    }
