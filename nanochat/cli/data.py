"""This file holds `nanochat data`: text files become tokens to train on."""

import dataclasses
import functools
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanochat.cli.options import as_json_option
from nanochat.cli.output import format_bytes, note, print_json, print_table, shown_progress
from nanochat.cli.recipe import (
    changes_option,
    config_argument,
    data_option,
    device_option,
    preset_option,
)
from nanochat.cli.run import Group, require_packages

if TYPE_CHECKING:
    from nanochat.data.index import DataIndex

__all__ = ["data"]

_shown = functools.partial(click.option, show_default=True)
_PREPARE_EXAMPLES = """\b
Examples:
  nanochat data prepare 'src/**/*.rs' --out data/rust --vocab-size 4096
  nanochat data prepare books/ --out data/books --tokenizer data/rust
  nanochat data prepare 'web/*.parquet' --column content --out data/web --vocab-size 32768
  nanochat data prepare chats.jsonl --chat --out data/chats --tokenizer runs/tiny/model
  nanochat data prepare hub:HuggingFaceFW/fineweb-edu:sample-10BT --out data/web --vocab-size 32768
"""
_LOGITS_EXAMPLES = """\b
Example:
  nanochat data logits small.toml --data data/rust --model runs/large/model --out logits
  nanochat train small.toml --data data/rust --set teacher.logits=logits
"""
_SHOW_EXAMPLES = """\b
Example:
  nanochat data show data/rust
"""


@click.group(cls=Group)
def data() -> None:
    """Turn text into training data, and look at it."""


@data.command(epilog=_PREPARE_EXAMPLES)
@click.argument("patterns", nargs=-1, required=True)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Directory to write the data to."
)
@click.option(
    "--vocab-size",
    type=int,
    help="Train a tokenizer of this many tokens on the text.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Use the tokenizer in this directory of a model or of prepared data instead.",
)
@_shown(
    "--held-out",
    default=0.02,
    help="Share of the texts that is kept for evaluation; where they are too few, of the end of each.",
)
@_shown(
    "--column", default="text", help="Field of a record of .jsonl or .parquet that holds its text."
)
@click.option(
    "--chat",
    is_flag=True,
    help="Records are conversations: messages with role and content, or as of ShareGPT; only answers are learnt.",
)
@click.option(
    "--revision", help="Branch, tag or commit of the data sets of the Hub.  [default: main]"
)
@_shown(
    "--near-duplicates",
    default=0.0,
    help="Leave out texts that share so much of their sequences of five words with an earlier one: 0.8, say; 0 keeps "
    "them.",
)
@_shown("--shard-tokens", default=2**26, help="Tokens of one file.")
@_shown(
    "--max-file-bytes", default=2**30, help="Leave out files of text, and records, that are larger."
)
@_shown(
    "--sample-bytes", default=20_000_000, help="Bytes of text that a new tokenizer is trained on."
)
@_shown(
    "--processes", default=1, help="Processes that read and tokenise; what they write is the same."
)
@click.option("--overwrite", is_flag=True, help="Replace the data that --out holds.")
@as_json_option
def prepare(
    patterns: tuple[str, ...],
    *,
    out: Path,
    vocab_size: int | None,
    tokenizer: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Write the tokens of all text that PATTERNS match: files, directories, quoted globs, and hub:org/name.

    Every file is one text, but .jsonl (also .jsonl.gz, .jsonl.zst) and .parquet hold one a record. Data sets of the
    Hugging Face Hub are streamed: of their training split, hub:org/name:configuration names a configuration.
    """
    from nanochat.data.prepare import prepare as prepare_data
    from nanochat.text.tokenizer import Tokenizer

    if vocab_size is not None and tokenizer is None:
        source: Tokenizer | int = vocab_size
    elif vocab_size is None and tokenizer is not None:
        source = Tokenizer.load(tokenizer)
    else:
        raise click.UsageError(
            "pass either --vocab-size, to train a tokenizer, or --tokenizer, to use one"
        )
    # As Ctrl-C does, it leaves nothing half-written.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # The options are declared with the names and types of the arguments.
    index = prepare_data(patterns, out, source, **given)
    note(f"wrote {out}")
    _print(index, as_json=as_json)


@data.command(epilog=_SHOW_EXAMPLES)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every token and compare the checksums.")
@as_json_option
def show(directory: Path, *, verify: bool, as_json: bool) -> None:
    """Show what prepared data holds."""
    from nanochat.data.index import DataIndex
    from nanochat.data.shards import Shards

    index = DataIndex.read(directory)
    if verify:
        for split in ("train", "held_out"):
            if index.splits[split].tokens:
                Shards(directory, split).verify()
        note("every checksum is right")
    _print(index, as_json=as_json)


@data.command(epilog=_LOGITS_EXAMPLES)
@config_argument
@preset_option
@changes_option
@data_option
@device_option
@click.option(
    "--model",
    required=True,
    help="The teacher: a directory of a model, or a name of the catalog or the Hub.",
)
@_shown("--count", default=32, help="Logits of each token.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory to write the logits to.",
)
def logits(
    *,
    config: Path | None,
    preset: str | None,
    changes: list[tuple[str, object]],
    data: Path | dict[str, Path] | None,
    **given: Any,
) -> None:
    """Write what a teacher says of everything that a run of CONFIG will read.

    The run, of the same CONFIG, data and --set, learns from it with teacher.logits=OUT, and needs the teacher no more.
    """
    require_packages("train", "torch", "pydantic", "safetensors")
    from nanochat.training.plan import recipe_of
    from nanochat.training.stored_logits import store_logits

    if data is None:
        raise click.UsageError("pass the data of the run: --data runs/NAME/data, say")
    recipe = recipe_of(config, preset_name=preset, changes=changes)
    out = given["out"]
    with shown_progress(out.name) as (watch, _):
        # The options are declared with the names and types of the arguments.
        store_logits(recipe, data, watch=watch, **given)
    size = sum(file.stat().st_size for file in out.iterdir())
    note(f"wrote {out}, {format_bytes(size)}")


def _print(index: "DataIndex", *, as_json: bool) -> None:
    if as_json:
        print_json(dataclasses.asdict(index))
        return
    rows = [
        (
            name,
            split.files,
            format_bytes(split.bytes),
            split.tokens,
            f"{split.bytes / max(split.tokens, 1):.2f}",
            len(split.shards),
        )
        for name, split in index.splits.items()
    ]
    print_table(rows, header=("split", "documents", "text", "tokens", "bytes/token", "shards"))
    print_table(
        [
            ("vocabulary", f"{index.vocab_size} tokens"),
            ("from", " ".join(index.patterns)),
            *((f"left out, {reason}", n) for reason, n in index.dropped.items()),
        ]
    )
