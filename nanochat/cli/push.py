"""This file holds `nanochat models push`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanochat.cli.options import as_json_option
from nanochat.cli.output import format_bytes, note, print_json, print_table, write

if TYPE_CHECKING:
    from nanochat.publish.publish import Published

__all__ = ["push"]

_EXAMPLES = """\b
Examples:
  nanochat models push runs/mine/model you/mine --licence MIT --dry-run
  nanochat models push runs/mine/model you/mine --licence MIT --format gguf --format onnx
  nanochat models push runs/mine/model you/mine --separate --format mlx --create-pr
"""


def _require_text(context: click.Context, option: click.Parameter, value: str | None) -> str:
    """Refuse an empty value, as of a variable that is not set, which would mean the default."""
    if value is not None and not value.strip():
        raise click.BadParameter("it is empty: pass a value, or leave it out", context, option)
    return value or ""


@click.command(epilog=_EXAMPLES)
@click.argument("model", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option(
    "--licence",
    callback=_require_text,
    help="SPDX identifier of the weights' licence.  [default: what the model's files say]",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["gguf", "onnx", "mlx", "hf", "web"]),
    help="Export to this format, too, and upload it; may be given several times.",
)
@click.option(
    "--separate",
    is_flag=True,
    help="Give each format a repository of its own, OWNER/NAME-gguf and so on.",
)
@click.option(
    "--private", is_flag=True, default=None, help="Make the repository private, if it is not there."
)
@click.option(
    "--branch", callback=_require_text, help="Branch, made if it is not there.  [default: main]"
)
@click.option("--create-pr", is_flag=True, help="Open a pull request, and leave main as it is.")
@click.option("--message", callback=_require_text, help="Subject of the commit.")
@click.option(
    "--base-model",
    callback=_require_text,
    metavar="OWNER/NAME",
    help="Model that this one was made from.",
)
@click.option(
    "--dataset", "datasets", multiple=True, help="What it was trained on, by its name on the Hub."
)
@click.option(
    "--language", "languages", multiple=True, help="Language of that: a code such as en, or code."
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice(["torch", "mlx", "numba", "onnx", "reference"]),
    help="Verify and measure on this one.  [default: on all that can run here]",
)
@click.option(
    "--prompt",
    default="Once upon a time",
    show_default=True,
    help="What the lines of the card continue.",
)
@click.option("--token", help="Access token.  [default: HF_TOKEN, or that of `hf auth login`]")
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
    from nanochat.publish.options import Options
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
