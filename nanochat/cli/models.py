"""This file holds `nanochat models`: the models that have a name, what is here of them, and its upload."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nanochat.cli.options import (
    Command,
    as_json_option,
    backend_option,
    model_argument,
    unpinned_option,
)
from nanochat.cli.output import format_bytes, format_count, note, print_json, print_table, write
from nanochat.cli.run import Group, as_file_errors
from nanochat.errors import (
    ConfigError,
    FormatError,
    InputError,
    ModelNotFoundError,
    counted,
)
from nanochat.publish.options import PushOptions

if TYPE_CHECKING:
    from nanochat.export.verify import Verified
    from nanochat.publish.push import Published
    from nanochat.zoo.cache import Cached
    from nanochat.zoo.candidates import Location
    from nanochat.zoo.entries import Entry

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
  nanochat models pull owner/name@main:gguf
  nanochat models verify owner/name --backend numba
  nanochat models push path/to/model owner/name --licence MIT
"""


@click.group(cls=Group, epilog=_EXAMPLES)
def models() -> None:
    """List, show, fetch, verify, remove and publish models."""


@models.command("list")
@as_json_option
def list_models(*, as_json: bool) -> None:
    """List the models of the catalog, the one that comes with the package first, and those fetched from the Hub."""
    from nanochat.zoo.cache import cached
    from nanochat.zoo.catalog import CATALOG

    here = {model.repo: model for model in cached()}
    named = [_describe(entry, here.pop(entry.repo or "", None)) for entry in CATALOG.values()]
    fetched = [_describe_cached(model) for model in here.values()]
    if as_json:
        print_json({"models": [*named, *fetched]})
        return
    rows = [
        (
            m["name"],
            format_bytes(int(str(m["bytes"]))),
            *(str(m[key]) for key in _COLUMNS[:-1]),
            _with_aliases(m),
        )
        for m in (*named, *fetched)
    ]
    print_table(rows, header=("name", "size", *_COLUMNS))


@models.command()
@click.argument("name")
@as_json_option
def show(name: str, *, as_json: bool) -> None:
    """Show one model: of the catalog, on this disk, or fetched from the Hub before."""
    from nanochat.zoo.cache import cached
    from nanochat.zoo.catalog import CATALOG, canonical

    entry = CATALOG.get(canonical(name))
    if entry is not None and not Path(name).is_dir():
        here = {model.repo: model for model in cached()}
        description = _describe(entry, here.get(entry.repo or ""))
    else:
        description = _describe_located(name)
    if as_json:
        print_json(description)
    else:
        _print_short(description)


@models.command()
@click.argument("name")
@backend_option
@click.option("--force-download", is_flag=True, help="Fetch again what was fetched before.")
@unpinned_option
@as_json_option
def pull(name: str, *, backend: str, force_download: bool, unpinned: bool, as_json: bool) -> None:
    """Fetch a model from the Hugging Face Hub, and compare every file with the Hub's record of it.

    NAME is a name of the catalog or OWNER/NAME, perhaps with @REVISION and with :PART: a format, a folder, a file or a
    GGUF type, such as TQ2_0. Without a part, the best format for the backend is taken. A transfer that was cut goes on
    with what is missing.
    """
    from nanochat.export.formats import load_config
    from nanochat.zoo.hub import locate

    location = locate(name, backend=backend, force_download=force_download, unpinned=unpinned)
    if location.fetched is None:
        with as_file_errors():
            load_config(location.path)
        note(f"{name} is on this disk already")
    pulled = _describe_place(location)
    if as_json:
        print_json({**pulled, **_pins(location)})
    else:
        _print_short(pulled)


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
        verified = verify_model(resolve(model, backend=backend, unpinned=unpinned), backend=backend)
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


def _with_aliases(description: dict[str, object]) -> str:
    """What is said of a model, and what else it is called."""
    aliases = description.get("aliases")
    also = f" (also {' and '.join(aliases)})" if isinstance(aliases, list) and aliases else ""
    return f"{description['description']}{also}"


# What the table of `list` says besides name and size.
_COLUMNS = ("weights", "backend", "licence", "description")


def _describe(entry: "Entry", here: "Cached | None") -> dict[str, object]:
    from nanochat.cost import tensor_classes

    classes = [] if entry.config is None else tensor_classes(entry.config)
    published = f"{entry.repo} on the Hub{'' if entry.is_pinned else ', unpinned'}"
    if entry.repo is None:
        published = f"none yet: nanochat train --preset {entry.preset}"
    return {
        **dataclasses.asdict(entry),
        "aliases": list(entry.aliases),
        "other_repos": list(entry.other_repos),
        "weights": "included" if entry.ships else "cached" if here else published,
        "cached": entry.ships or here is not None,
        "backend": _backend(),
        "parameters": sum(c.parameters for c in classes),
        "bytes": sum(c.bytes for c in classes) or entry.bytes,
        "context_length": entry.context_length,
    }


def _describe_cached(model: "Cached") -> dict[str, object]:
    return {
        "name": model.repo,
        "repo": model.repo,
        "revisions": model.revisions,
        "weights": "cached",
        "cached": True,
        "backend": _backend(),
        "bytes": model.bytes,
        "licence": _licence(next(iter(model.paths.values()))),
        "description": f"of the Hub: {', '.join(model.paths)}",
    }


def _describe_located(name: str) -> dict[str, object]:
    """Describe a model that is here, whose files are read for it."""
    from nanochat.cost import tensor_classes
    from nanochat.export.formats import load
    from nanochat.export.run import choose_backend
    from nanochat.zoo.hub import locate

    location = locate(name, local_files_only=True)
    with as_file_errors():
        bundle = load(location.path, name=location.name)
    golden, classes = bundle.golden, tensor_classes(bundle.config)
    return {
        **_describe_place(location),
        **_pins(location),
        "licence": bundle.licence,
        "backend": choose_backend(bundle)[0],
        "parameters": sum(c.parameters for c in classes),
        "context_length": bundle.config.context_length,
        "golden_record": "none" if golden is None else f"of {len(golden.tokens)} tokens",
    }


def _describe_place(location: "Location") -> dict[str, object]:
    place: dict[str, object] = {"name": location.name, "path": str(location.path)}
    fetched = location.fetched
    if fetched is None:
        files = [location.path] if location.path.is_file() else list(location.path.rglob("*"))
        return {**place, "bytes": sum(f.stat().st_size for f in files if f.is_file())}
    return {
        **place,
        "repo": fetched.repo,
        "commit": fetched.commit,
        "format": fetched.model.kind,
        "bytes": fetched.bytes,
        "files": list(fetched.model.files),
    }


def _pins(location: "Location") -> dict[str, object]:
    """Size and hash of each file of a model of the Hub, as an entry of the catalog pins them."""
    from nanochat.files import record_file

    fetched = location.fetched
    if fetched is None:
        return {}
    records = {name: record_file(fetched.snapshot / name) for name in fetched.model.files}
    return {"files": {name: dataclasses.asdict(record) for name, record in records.items()}}


def _print_short(description: dict[str, object]) -> None:
    """Print what is for programs readably: sizes with a unit, and files as a number."""
    for key, value in description.items():
        if isinstance(value, int) and key in ("bytes", "parameters"):
            description[key] = format_bytes(value) if key == "bytes" else format_count(value)
        elif isinstance(value, bool):
            description[key] = "yes" if value else "no"
        elif value is None or value in ("", {}, []):
            description[key] = "none"
        elif key == "aliases" and isinstance(value, list):
            description[key] = ", ".join(value)
        elif isinstance(value, dict | list) and key == "files":
            description[key] = f"{len(value)}, compared with their record when they are opened"
    print_table(list(description.items()))


def _licence(path: Path) -> str:
    """What a model's files say; a damaged file says nothing."""
    from nanochat.export.format import ModelFiles
    from nanochat.export.formats import detect

    files = ModelFiles(path)
    try:
        return detect(files).licence(files)
    except (ConfigError, FormatError, ModelNotFoundError):
        return "unknown"


def _backend() -> str:
    """What would run a model here."""
    from nanochat import backends

    return backends.choose("auto")[0]
