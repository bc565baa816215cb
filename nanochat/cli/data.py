"""This file holds `nanochat data`: text files become tokens to train on."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanochat.cli.options import as_json_option
from nanochat.cli.output import format_bytes, note, print_json, print_table
from nanochat.cli.run import Group

if TYPE_CHECKING:
    from nanochat.train.data import DataIndex

__all__ = ["data"]

_PREPARE_EXAMPLES = """\b
Examples:
  nanochat data prepare 'src/**/*.rs' --out data/rust --vocab-size 4096
  nanochat data prepare books/ --out data/books --tokenizer data/rust
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
    help="Train a tokenizer of this many tokens on the text, at most 65536.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Use the tokenizer in this directory of a model or of prepared data instead.",
)
@click.option(
    "--held-out",
    type=float,
    default=0.02,
    show_default=True,
    help="Share of the files that is kept for evaluation.",
)
@click.option(
    "--shard-tokens", type=int, default=2**26, show_default=True, help="Tokens of one file."
)
@click.option(
    "--max-file-bytes",
    type=int,
    default=2**30,
    show_default=True,
    help="Leave out files that are larger.",
)
@click.option(
    "--sample-bytes",
    type=int,
    default=20_000_000,
    show_default=True,
    help="Bytes of text that a new tokenizer is trained on.",
)
@click.option("--overwrite", is_flag=True, help="Replace the data that --out holds.")
@as_json_option
def prepare(
    patterns: tuple[str, ...],
    *,
    out: Path,
    vocab_size: int | None,
    tokenizer: Path | None,
    held_out: float,
    shard_tokens: int,
    max_file_bytes: int,
    sample_bytes: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the tokens of all files that PATTERNS match: files, directories and quoted globs."""
    from nanochat.text.tokenizer import Tokenizer
    from nanochat.train.corpus import prepare as prepare_data

    if vocab_size is not None and tokenizer is None:
        source: Tokenizer | int = vocab_size
    elif vocab_size is None and tokenizer is not None:
        source = Tokenizer.load(tokenizer)
    else:
        raise click.UsageError(
            "pass either --vocab-size, to train a tokenizer, or --tokenizer, to use one"
        )
    index = prepare_data(
        patterns,
        out,
        source,
        held_out=held_out,
        shard_tokens=shard_tokens,
        max_file_bytes=max_file_bytes,
        sample_bytes=sample_bytes,
        overwrite=overwrite,
    )
    note(f"wrote {out}")
    _print(index, as_json=as_json)


@data.command(epilog=_SHOW_EXAMPLES)
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every token and compare the checksums.")
@as_json_option
def show(directory: Path, *, verify: bool, as_json: bool) -> None:
    """Show what prepared data holds."""
    from nanochat.train.data import DataIndex, Shards

    index = DataIndex.read(directory)
    if verify:
        if index.splits["train"].tokens:
            Shards(directory, "train").verify()
        if index.splits["held_out"].tokens:
            Shards(directory, "held_out").verify()
        note("every checksum is right")
    _print(index, as_json=as_json)


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
    print_table(rows, header=("split", "files", "text", "tokens", "bytes/token", "shards"))
    print_table(
        [
            ("vocabulary", f"{index.vocab_size} tokens"),
            ("from", " ".join(index.patterns)),
            *((f"left out, {reason}", f"{n} files") for reason, n in index.dropped.items()),
        ]
    )
