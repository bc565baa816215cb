"""This file holds `nanochat export`, or `nanochat-export`: a model becomes a file or a folder for another runtime.

The options of the formats are made of what each format declares.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import click

from nanochat import __version__
from nanochat.cli.options import Command, as_json_option, unpinned_option
from nanochat.cli.output import (
    format_bytes,
    note,
    print_json,
    print_table,
    shown_progress,
    write,
)
from nanochat.cli.run import as_file_errors, run
from nanochat.errors import InputError, counted
from nanochat.export.format import Format, literals
from nanochat.export.formats import FORMATS, format_named, written_names

if TYPE_CHECKING:
    from nanochat.bundle import Bundle
    from nanochat.export.export import Exported

__all__ = ["export", "main"]

_EXAMPLES = """\b
Examples:
  nanochat-export --format gguf nanochat-tiny
  nanochat-export --format gguf --outtype q2_0 --runtime llama.cpp path/to/model
  nanochat-export --format onnx --out build/tiny-onnx nanochat-tiny
  nanochat-export --format web nanochat-tiny && python -m http.server -d nanochat-tiny-web
"""


def _format_options(command: Command) -> Command:
    """Add every option of every format; one of the same name in several formats is added once."""
    named: dict[str, list[tuple[Format[Any], Field[Any]]]] = {}
    for form in _writable():
        for field in fields(form.options or object):
            named.setdefault(field.name, []).append((form, field))
    for name, uses in reversed(named.items()):
        command = _option(name, uses)(command)
    return command


def _option(name: str, uses: list[tuple[Format[Any], Field[Any]]]) -> Callable[[Command], Command]:
    form, first = uses[0]
    formats = ", ".join(_short_name(form).upper() for form, _ in uses)
    default = first.metadata["default"] or first.default
    hint = get_type_hints(form.options)[name]
    text = f"{formats}: {first.metadata['help']}."
    if hint is bool:
        return click.option(f"--{name}", is_flag=True, default=None, help=text)
    known = dict.fromkeys(
        choice for one, _ in uses for choice in literals(get_type_hints(one.options)[name])
    )
    return click.option(
        f"--{name}",
        type=click.Choice(list(known)) if known else hint,
        help=f"{text}  [default: {default}]",
    )


def _writable() -> Iterator[Format[Any]]:
    return (form for form in FORMATS.values() if form.options is not None)


def _short_name(form: Format[Any]) -> str:
    return form.aliases[0] if form.aliases else form.name


@click.command(epilog=_EXAMPLES)
@click.version_option(__version__, message="nanochat-ternary %(version)s")
@click.argument("model")
@click.option(
    "--format", "kind", required=True, type=click.Choice(written_names()), help="What to write."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File or folder to write or replace.  [default: named after the model, here]",
)
@_format_options
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
@unpinned_option
@as_json_option
def export(
    model: str,
    *,
    kind: str,
    out: Path | None,
    verify: bool,
    licence: str | None,
    unroll_loop: bool,
    exit_threshold: float | None,
    upload_repo: str | None,
    unpinned: bool,
    as_json: bool,
    **given: str | bool | None,
) -> None:
    """Write MODEL in another format, print how its tensors are stored, and compare it with the model.

    MODEL is a directory, a .gguf or .onnx file, a name that `nanochat models list` shows, or OWNER/NAME on the Hugging
    Face Hub. The parity report stands beside the result as JSON. Nothing is written if the result computes something
    else than the model. With --upload-repo it is then verified once more, measured on all backends, and uploaded.
    """
    options = _read_format_options(kind, given)
    from nanochat.cost import tensor_classes
    from nanochat.export.export import export_model
    from nanochat.export.format import ModelFiles
    from nanochat.export.formats import detect, load
    from nanochat.publish.licence import choose_licence, find_licence_file, hub_name
    from nanochat.publish.options import PushOptions
    from nanochat.publish.push import repositories, require_ready
    from nanochat.zoo.catalog import CATALOG, canonical
    from nanochat.zoo.hub import locate

    if upload_repo is not None:
        # Before the work that would be for nothing.
        repositories(upload_repo, PushOptions())
    location = locate(model, unpinned=unpinned)
    path, name = location.path, location.name
    out = out or Path(f"{name}{format_named(kind).suffix or '-' + kind}")
    if out.exists() and path.exists() and out.samefile(path):
        raise InputError(f"{out} is the model itself: pass another path as --out")
    if licence is None and canonical(model) in CATALOG:
        licence = CATALOG[canonical(model)].licence
    text = None
    if upload_repo is not None:
        text = find_licence_file(path if path.is_dir() else path.parent)
        with as_file_errors():
            files = ModelFiles(path)
            own = detect(files).licence(files)
            licence = choose_licence(own, licence or "", has_text=text is not None)
        # Beside a file, it may be another's.
        text = text if path.is_dir() or hub_name(licence) is None else None
        require_ready(upload_repo, PushOptions(), licence=licence)
    with as_file_errors():
        bundle = load(path, name=name, licence=licence)
    bundle = _transformed(bundle, unroll_loop=unroll_loop, exit_threshold=exit_threshold)
    with shown_progress(out.name) as (progress, announce):
        exported = export_model(
            bundle,
            out,
            kind=kind,
            options=options,
            verify=verify,
            progress=progress,
            announce=announce,
        )
    note(f"wrote {out} ({exported.written.architecture}), {format_bytes(exported.bytes)}")
    types = exported.types
    rows = [
        (c.name, types.get(c.format, types.get(c.kind, c.kind)), c.tensors, c.parameters)
        for c in tensor_classes(bundle.config)
    ]
    if not as_json:
        print_table(rows, header=("tensors", "format", "count", "parameters"))
        write(
            f"read back: {counted(exported.digests, 'tensor')}, configuration and tokenizer as they were\n"
        )
        unmeasured = "proven by that, as this package runs it" if verify else "not checked"
        write(f"parity: {exported.parity or unmeasured}\n")
    address = None
    if upload_repo is not None:
        address = _upload(exported, upload_repo, text, with_coefficients=bool(given.get("mhc")))
    if as_json:
        keys = ("name", "format", "tensors", "parameters")
        print_json(
            {
                "model": model,
                "format": exported.kind,
                "written_as": exported.written.architecture,
                "digests": exported.digests,
                "path": str(exported.path),
                "bytes": exported.bytes,
                "tensors": [dict(zip(keys, row, strict=True)) for row in rows],
                "parity": None if exported.parity is None else exported.parity.to_dict(),
                "uploaded": address,
            }
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `nanochat-export` and end the process with its exit code."""
    sys.exit(run(export, "nanochat-export", arguments))


def _read_format_options(kind: str, given: Mapping[str, object]) -> object:
    """The options of a format, if all that were given have a meaning for it."""
    form = format_named(kind)
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        takes = [f for f in _writable() if name in get_type_hints(f.options)]
        if form not in takes:
            formats = " and ".join(map(_short_name, takes))
            raise click.UsageError(f"--{name} is for {formats}, not for {kind}")
    options: object = form.choose(**chosen)
    return options


def _upload(
    exported: "Exported", repo: str, licence_file: Path | None, *, with_coefficients: bool
) -> str:
    """The address of the commit."""
    from nanochat.publish.options import PushOptions
    from nanochat.publish.push import push_model

    out = exported.path
    report = out.with_name(f"{out.name}.parity.json")
    extra_files = [report] if out.is_file() and report.exists() else []
    extra_files += [out.with_suffix(".mhc")] if with_coefficients else []
    extra_files += [licence_file] if licence_file else []
    (published,) = push_model(out, repo, PushOptions(extra_files=extra_files), report=note)
    note(f"uploaded to {published.commit_url}")
    return published.commit_url


def _transformed(bundle: "Bundle", *, unroll_loop: bool, exit_threshold: float | None) -> "Bundle":
    from nanochat.cost import cost
    from nanochat.export.transform import unroll, with_exit_threshold

    if exit_threshold is not None:
        bundle = with_exit_threshold(bundle, exit_threshold)
    if not unroll_loop:
        return bundle
    unrolled = unroll(bundle)
    before, after = (cost(s.config, context=1).stored_bytes for s in (bundle, unrolled))
    note(
        f"unrolled {bundle.config.loop_count} loops: {bundle.config.num_layers} layers become "
        f"{unrolled.config.num_layers}, {format_bytes(before)} become {format_bytes(after)}"
    )
    return unrolled
