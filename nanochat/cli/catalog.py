"""This file holds `nanochat models list`, `show` and `pin`: what there is, what it takes, and what a name means."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanochat.cli.describe import (
    auto_backend,
    describe,
    describe_cached,
    describe_located,
    describe_remote,
    print_short,
    with_aliases,
)
from nanochat.cli.expectation import expect, in_short, print_expectation
from nanochat.cli.options import as_json_option, backend_option
from nanochat.cli.output import format_bytes, note, print_json, print_table, write
from nanochat.errors import InputError, ModelNotFoundError, NanochatError

if TYPE_CHECKING:
    from nanochat.config import ModelConfig

__all__ = ["list_models", "pin", "show"]

# What the table of `list` says besides name, size and what is expected here.
_COLUMNS = ("weights", "licence", "description")
_SHOW_EXAMPLES = """\b
Examples:
  nanochat models show ternary-bonsai-8b
  nanochat models show ternary-bonsai-1.7b --context 16384 --context 32768
  nanochat models show owner/name:TQ2_0 --json
"""


@click.command("list")
@as_json_option
def list_models(*, as_json: bool) -> None:
    """List the models of the catalog, the one that comes with the package first, and those fetched from the Hub.

    "here" is whether a model fits the memory that is free, with a text of 4096 tokens, and how many tokens a second it
    would write in a short one, once `nanochat doctor` or `nanochat models show` has measured how fast memory is.
    """
    from nanochat.memory import free_bytes
    from nanochat.zoo.cache import cached
    from nanochat.zoo.catalog import CATALOG

    here = {model.repo: model for model in cached()}
    named = [describe(entry, here.pop(entry.repo or "", None)) for entry in CATALOG.values()]
    fetched = [describe_cached(model) for model in here.values()]
    if as_json:
        print_json({"models": [*named, *fetched]})
        return
    free, backend = free_bytes(), auto_backend()
    expected = [
        in_short(entry.config, entry.bytes, backend=backend, free=free)
        for entry in CATALOG.values()
    ]
    rows = [
        (
            m["name"],
            format_bytes(size) if (size := int(str(m["bytes"]))) else "unknown",
            short,
            *(str(m[key]) for key in _COLUMNS[:-1]),
            with_aliases(m),
        )
        for m, short in zip((*named, *fetched), [*expected, *("" for _ in fetched)], strict=True)
    ]
    print_table(rows, header=("name", "size", "here", *_COLUMNS))


@click.command(epilog=_SHOW_EXAMPLES)
@click.argument("name")
@backend_option
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(min=1),
    multiple=True,
    help="Tokens of the texts for which memory and speed are told; repeatable.  [default: 256, 4096 and 32768]",
)
@as_json_option
def show(name: str, *, backend: str, contexts: Sequence[int], as_json: bool) -> None:
    """Show one model, what it takes of this machine's memory, and how fast it will write here; nothing is downloaded.

    NAME is of the catalog, on this disk, or OWNER/NAME on the Hugging Face Hub, whose headers are read then. Tokens a
    second are those of one text that is written alone, as the weights are read at the speed of memory that was
    measured here.
    """
    from nanochat import backends

    backend = backends.choose(backend)[0]
    description, config = _described(name, backend)
    if config is not None:
        expected = expect(config, name=name, backend=backend, contexts=contexts)
    if as_json:
        print_json({**description, **({} if config is None else {"expected": expected})})
        return
    print_short(description)
    if config is not None:
        print_expectation(expected)
    else:
        write(
            f"\nwhat it takes of memory is not known, for its configuration is not: see {description['repo']} on the "
            "Hub, or pass it by that name to have its headers read\n"
        )


def _described(name: str, backend: str) -> "tuple[dict[str, object], ModelConfig | None]":
    """What is said of a model, and its configuration."""
    from nanochat.zoo.cache import cached
    from nanochat.zoo.candidates import Request
    from nanochat.zoo.catalog import CATALOG, canonical
    from nanochat.zoo.hub import is_repo, split_name

    entry = CATALOG.get(canonical(name))
    if entry is not None and not Path(name).is_dir():
        here = {model.repo: model for model in cached()}
        return describe(entry, here.get(entry.repo or "")), entry.config
    try:
        return describe_located(name)
    except ModelNotFoundError:
        repo, revision, part = split_name(name)
        if not is_repo(repo):
            raise
    from nanochat.zoo.remote import Remote

    request = Request(repo=repo, revision=revision, part=part, backend=backend)
    return describe_remote(Remote.find(request))


@click.command()
@click.argument("name")
@click.option(
    "--revision",
    default="",
    help="Branch, tag or commit that is meant.  [default: the main branch]",
)
@as_json_option
def pin(name: str, *, revision: str, as_json: bool) -> None:
    """Write into the catalog which commit and which files a name stands for, for maintainers.

    The Hub is asked for the commit, sizes and hashes, and the headers of the files for the configuration; no weights
    are fetched. From then on the name stands for these files, and for no others.
    """
    from nanochat.bundle import CARD
    from nanochat.zoo.candidates import Request
    from nanochat.zoo.catalog import CATALOG, canonical
    from nanochat.zoo.entries import Pins, shape_of, write_pins
    from nanochat.zoo.remote import Remote

    entry = CATALOG.get(canonical(name))
    if entry is None or entry.repo is None:
        reason = "is no name of the catalog" if entry is None else "is in no repository of the Hub"
        names = ", ".join(one.name for one in CATALOG.values() if one.repo and not one.is_pinned)
        raise InputError(f"{name:.80} {reason}: pin one of {names}")
    remote = Remote.find(Request(repo=entry.repo, revision=revision, part=entry.part))
    records = {file: record for file, record in remote.records().items() if file != CARD}
    shape: dict[str, object] = {}
    try:
        shape = shape_of(remote.config())
    except NanochatError as error:
        note(
            f"warning: the configuration stays as the entry has it, for the header tells none ({error})"
        )
    changed = [
        f"{key} {entry.shape.get(key)!r} becomes {shape.get(key)!r}"
        for key in sorted(entry.shape.keys() | shape.keys())
        if shape and entry.shape and _differ(entry.shape.get(key), shape.get(key))
    ]
    if changed:
        note(
            f"warning: the header tells another configuration than the entry: {'; '.join(changed)}"
        )
    path = write_pins(entry.name, Pins(revision=remote.commit, files=records, shape=shape))
    pinned = {
        "name": entry.name,
        "repo": entry.repo,
        "commit": remote.commit,
        "file": remote.model.place or "the folder",
        "bytes": sum(record.bytes for record in records.values()),
        "files": list(records),
        "configuration": "of the header" if shape else "of the entry" if entry.shape else "unknown",
        "written": str(path),
    }
    if as_json:
        print_json(pinned)
    else:
        print_short(pinned)


def _differ(said: object, told: object) -> bool:
    """Whether two values are others, and not the same number in two types of the file."""
    if isinstance(said, float) and isinstance(told, float):
        return not math.isclose(said, told, rel_tol=1e-6)
    return said != told
