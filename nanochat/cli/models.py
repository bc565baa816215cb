"""This file holds `nanochat models`: the models that have a name, what is here of them, and its upload."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanochat.cli.catalog import list_models, pin, show
from nanochat.cli.describe import describe_place, pins, print_short
from nanochat.cli.options import (
    Command,
    as_json_option,
    backend_option,
    model_argument,
    unpinned_option,
)
from nanochat.cli.output import format_bytes, note, print_json, print_table, write
from nanochat.cli.run import Group, as_file_errors
from nanochat.errors import InputError, counted
from nanochat.publish.options import PushOptions

if TYPE_CHECKING:
    from nanochat.export.verify import Verified
    from nanochat.publish.push import Published

__all__ = ["models", "push"]

# Exit code of `verify` for a model that is whole, and of which nothing says what it computes.
_NOTHING_PROVEN = 3

_PUSH_EXAMPLES = """\b
Examples:
  nanochat models push runs/mine/model you/mine --licence MIT --dry-run
  nanochat models push runs/mine/model you/mine --licence MIT --format gguf --format onnx
  nanochat models push runs/mine/model you/mine --separate --format mlx --create-pr
"""


_EXAMPLES = """\b
Examples:
  nanochat models list
  nanochat models show ternary-bonsai-8b
  nanochat models pull owner/name@main:gguf
  nanochat models verify owner/name --backend numba
  nanochat models push path/to/model owner/name --licence MIT
"""


@click.group(cls=Group, epilog=_EXAMPLES)
def models() -> None:
    """List, show, fetch, verify, remove, pin and publish models."""


for _command in (list_models, show, pin):
    models.add_command(_command)


@models.command()
@click.argument("name")
@backend_option
@click.option("--force-download", is_flag=True, help="Fetch again what was fetched before.")
@click.option(
    "--verify", is_flag=True, help="Read files again that are known by their size, times and inode."
)
@unpinned_option
@as_json_option
def pull(
    name: str,
    *,
    backend: str,
    force_download: bool,
    verify: bool,
    unpinned: bool,
    as_json: bool,
) -> None:
    """Fetch a model from the Hugging Face Hub, and compare every file with the Hub's record of it.

    NAME is a name of the catalog or OWNER/NAME, perhaps with @REVISION and with :PART: a format, a folder, a file or a
    GGUF type, such as TQ2_0. Without a part, the best format for the backend is taken. A transfer that was cut goes on
    with what is missing.
    """
    from nanochat.export.formats import load_config
    from nanochat.zoo.hub import locate

    location = locate(
        name, backend=backend, force_download=force_download, unpinned=unpinned, verify=verify
    )
    if location.fetched is None:
        with as_file_errors():
            load_config(location.path)
        note(f"{name} is on this disk already")
    pulled = describe_place(location)
    if as_json:
        print_json({**pulled, **pins(location)})
    else:
        print_short(pulled)


@models.command()
@model_argument
@backend_option
@unpinned_option
@as_json_option
def verify(model: str, *, backend: str, unpinned: bool, as_json: bool) -> None:
    """Check the files of MODEL, and that they compute what they did when they were written.

    MODEL is a model directory, an exported folder, a .gguf or .onnx file, or a model's name. Sizes and hashes are those
    of nanochat.json, if there is one; codes and numbers must be legal; tensors, configuration, tokenizer and what other
    programs read must be those of the golden record, which is run on the backend. A mismatch names the file, the key,
    the tensor or the layer. The exit code is 3 if all is whole and legal, but there is no record to prove more.
    """
    from nanochat.export.verify import verify_model
    from nanochat.zoo.hub import resolve

    with as_file_errors():
        verified = verify_model(
            resolve(model, backend=backend, unpinned=unpinned, verify=True), backend=backend
        )
    proven = verified.golden is not None
    if as_json:
        print_json(dataclasses.asdict(verified))
    else:
        print_table(list(_findings(verified)))
    if not proven:
        note("whole and legal, nothing proven: there is no record of what this model computes")
        raise click.exceptions.Exit(_NOTHING_PROVEN)


def _findings(verified: "Verified") -> Iterator[tuple[str, str]]:
    yield "model", verified.path
    yield "tensors", f"{verified.tensors} whole and legal"
    hashes = f"{verified.files} as they were written"
    yield "files", "no nanochat.json to compare them with" if verified.files is None else hashes
    if verified.golden is None:
        yield "golden record", "none"
        return
    old = "not in this record, which an older version made"
    yield "configuration, tokenizer", "as they were" if verified.digests else old
    error = f"{verified.golden:.1e}"
    yield "golden record", f"agrees on {verified.backend}, largest RMS error {error}"


@models.command("rm")
@click.argument("name")
@as_json_option
def remove(name: str, *, as_json: bool) -> None:
    """Delete what was fetched of a model from the Hub; NAME is OWNER/NAME, perhaps with @REVISION."""
    from nanochat.zoo.cache import remove as remove_fetched
    from nanochat.zoo.catalog import CATALOG, canonical
    from nanochat.zoo.hub import is_repo

    model, _, revision = name.partition("@")
    entry = CATALOG.get(canonical(model))
    if entry is not None and entry.repo is None:
        reason = "comes with the package" if entry.ships else "is not published"
        raise InputError(f"{model} {reason}: there is nothing to remove")
    repo = model if entry is None or entry.repo is None else entry.repo
    if not is_repo(repo):
        raise InputError(
            f"{model!r:.200} is no model of the Hub: pass OWNER/NAME; files of your own are yours to delete"
        )
    freed = remove_fetched(repo, revision=revision)
    if as_json:
        print_json({"repo": repo, "revision": revision, "freed_bytes": freed})
    else:
        print_table([("removed", name), ("freed", format_bytes(freed))])


def _publication_options(command: Command) -> Command:
    """Add an option for each field of `PushOptions` that has a help."""
    for field in reversed(dataclasses.fields(PushOptions)):
        if field.metadata:
            shown: dict[str, Any] = {**_kind(field.default), **field.metadata}
            name = shown.pop("option", f"--{field.name.replace('_', '-')}")
            if "choices" in shown:
                shown["type"] = click.Choice(shown.pop("choices"))
            if "is_flag" in shown:
                shown["default"] = field.default
            command = click.option(name, field.name, **shown)(command)
    return command


def _kind(default: object) -> dict[str, object]:
    """What the default of a field says of its option."""
    match default:
        case bool():
            return {"is_flag": True}
        case ():
            return {"multiple": True}
        case "":
            return {"callback": _require_text}
        case str():
            return {"default": default, "show_default": True}
        case _:
            return {}


def _require_text(context: click.Context, option: click.Parameter, value: str | None) -> str:
    """Refuse an empty value, as of a variable that is not set, which would mean the default."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty: pass a value, or leave it out", context, option)
    return value or ""


@models.command(epilog=_PUSH_EXAMPLES)
@click.argument("model", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@_publication_options
@click.option(
    "--dry-run", is_flag=True, help="Show what would be uploaded, and the card; upload nothing."
)
@as_json_option
def push(model: Path, repo: str, *, dry_run: bool, as_json: bool, **given: object) -> None:
    """Upload a model to the Hugging Face Hub, with a card that tells what was measured.

    DIR is a model directory, an exported folder, or a .gguf or .onnx file. Its hashes and its golden record are
    verified, formats are exported and run, and the lines of the card are executed; only then is anything uploaded, in
    one commit for each repository. A card that is there is updated: what its author wrote stays.
    """
    from nanochat.publish.push import push_model

    options = PushOptions(**given)  # type: ignore[arg-type]  # checked by click
    done = push_model(model, repo, options, dry_run=dry_run, report=note)
    if not as_json:
        for one in done:
            _show(one, dry_run=dry_run)
        return
    repositories = [dataclasses.asdict(one) for one in done]
    if not dry_run:
        # The card is at the Hub now.
        for fields in repositories:
            del fields["card"]
    print_json({"dry_run": dry_run, "repositories": repositories})


def _show(one: "Published", *, dry_run: bool) -> None:
    rows = [(name, format_bytes(size)) for name, size in one.files.items()]
    rows += [(name, "deleted") for name in one.deleted]
    print_table(rows, header=(one.repo, "bytes"))
    if dry_run:
        write(f"\n{one.card}\n")
        return
    total = format_bytes(sum(one.files.values()))
    write(
        f"uploaded {counted(len(one.files), 'file')}, {total}: {one.pull_request_url or one.commit_url}\n"
    )
