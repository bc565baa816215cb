"""This file holds `nanochat models push`, whose options are those of `nanochat.publish.options`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanochat.cli.options import Command, as_json_option
from nanochat.cli.output import format_bytes, note, print_json, print_table, write
from nanochat.publish.options import Options

if TYPE_CHECKING:
    from nanochat.publish.publish import Published

__all__ = ["push"]

_EXAMPLES = """\b
Examples:
  nanochat models push runs/mine/model you/mine --licence MIT --dry-run
  nanochat models push runs/mine/model you/mine --licence MIT --format gguf --format onnx
  nanochat models push runs/mine/model you/mine --separate --format mlx --create-pr
"""


def _publication_options(command: Command) -> Command:
    """Add an option for each field of `Options` that has a help."""
    for field in reversed(dataclasses.fields(Options)):
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


@click.command(epilog=_EXAMPLES)
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
    from nanochat.publish.publish import publish

    options = Options(**given)  # type: ignore[arg-type]  # checked by click
    done = publish(model, repo, options, dry_run=dry_run, report=note)
    if as_json:
        print_json({"dry_run": dry_run, "repositories": [_describe(one, dry_run) for one in done]})
        return
    for one in done:
        _show(one, dry_run=dry_run)


def _show(one: "Published", *, dry_run: bool) -> None:
    rows = [(name, format_bytes(size)) for name, size in one.files.items()]
    rows += [(name, "deleted") for name in one.deleted]
    print_table(rows, header=(one.repo, "bytes"))
    if dry_run:
        write(f"\n{one.card}", end="\n")
        return
    total = format_bytes(sum(one.files.values()))
    write(
        f"uploaded {len(one.files)} files, {total}: {one.pull_request_url or one.commit_url}",
        end="\n",
    )


def _describe(one: "Published", dry_run: bool) -> dict[str, object]:
    fields = dataclasses.asdict(one)
    # The card is at the Hub now.
    return fields if dry_run else {key: value for key, value in fields.items() if key != "card"}
