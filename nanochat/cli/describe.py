"""This file holds what `nanochat models` says of a model: of the catalog, on this disk, at the Hub."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nanochat.cli.output import format_bytes, format_count, print_table
from nanochat.cli.run import as_file_errors
from nanochat.errors import ConfigError, FormatError, ModelNotFoundError, NanochatError

if TYPE_CHECKING:
    from nanochat.config import ModelConfig
    from nanochat.zoo.cache import Cached
    from nanochat.zoo.candidates import Location
    from nanochat.zoo.entries import Entry
    from nanochat.zoo.remote import Remote

__all__ = [
    "auto_backend",
    "describe",
    "describe_cached",
    "describe_located",
    "describe_place",
    "describe_remote",
    "pins",
    "print_short",
    "with_aliases",
]


# How numbers are shown that may be large.
_UNITS: dict[str, Callable[[float], str]] = {
    "bytes": format_bytes,
    "parameters": format_count,
    "context_length": str,
}
# What is for programs only, or is said in other words.
_HIDDEN = ("context", "shape")


def with_aliases(description: dict[str, object]) -> str:
    """What is said of a model, and what else it is called."""
    aliases = description.get("aliases")
    also = f" (also {' and '.join(aliases)})" if isinstance(aliases, list) and aliases else ""
    return f"{description['description']}{also}"


def describe(entry: "Entry", here: "Cached | None") -> dict[str, object]:
    """Describe a model of the catalog; `here` is what was fetched of it."""
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
        "backend": auto_backend(),
        "parameters": sum(c.parameters for c in classes),
        "bytes": sum(c.bytes for c in classes) or entry.bytes,
        "context_length": entry.context_length,
        "tried": entry.tried or entry.ships,
    }


def describe_cached(model: "Cached") -> dict[str, object]:
    """Describe a model that was fetched from the Hub, and is not of the catalog."""
    return {
        "name": model.repo,
        "repo": model.repo,
        "revisions": model.revisions,
        "weights": "cached",
        "cached": True,
        "backend": auto_backend(),
        "bytes": model.bytes,
        "licence": _licence(next(iter(model.paths.values()))),
        "description": f"of the Hub: {', '.join(model.paths)}",
    }


def describe_located(name: str) -> "tuple[dict[str, object], ModelConfig]":
    """Describe a model that is here, whose files are read for it; and its configuration."""
    from nanochat.cost import tensor_classes
    from nanochat.export.formats import load
    from nanochat.export.run import choose_backend
    from nanochat.zoo.hub import locate

    location = locate(name, local_files_only=True)
    with as_file_errors():
        bundle = load(location.path, name=location.name)
    golden, classes = bundle.golden, tensor_classes(bundle.config)
    description = {
        **describe_place(location),
        **pins(location),
        "licence": bundle.licence,
        "backend": choose_backend(bundle)[0],
        "parameters": sum(c.parameters for c in classes),
        "context_length": bundle.config.context_length,
        "golden_record": "none" if golden is None else f"of {len(golden.tokens)} tokens",
    }
    return description, bundle.config


def describe_remote(remote: "Remote") -> "tuple[dict[str, object], ModelConfig | None]":
    """Describe a model of the Hub of which nothing is here; and its configuration, if its headers tell it."""
    from nanochat.cost import tensor_classes

    config, problem = None, ""
    try:
        config = remote.config()
    except NanochatError as error:
        problem = str(error)
    classes = [] if config is None else tensor_classes(config)
    description = {
        "name": remote.request.repo,
        "repo": remote.request.repo,
        "commit": remote.commit,
        "format": remote.model.kind,
        "file": remote.model.place or "the folder",
        "why": remote.reason,
        "others": list(remote.others),
        "bytes": remote.bytes,
        "files": list(remote.files),
        "weights": f"{remote.request.repo} on the Hub",
        "cached": False,
        "backend": auto_backend(),
        "parameters": sum(c.parameters for c in classes),
        "context_length": 0 if config is None else config.context_length,
        **({"problem": problem} if problem else {}),
    }
    return description, config


def describe_place(location: "Location") -> dict[str, object]:
    """Where a model is, and what was fetched of it."""
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


def pins(location: "Location") -> dict[str, object]:
    """Size and hash of each file of a model of the Hub, as an entry of the catalog pins them."""
    from nanochat.zoo.verified import VerifiedFiles

    fetched = location.fetched
    if fetched is None:
        return {}
    known = VerifiedFiles(fetched.snapshot.parents[1])
    records = {name: known.record(fetched.snapshot / name) for name in fetched.model.files}
    return {"files": {name: dataclasses.asdict(record) for name, record in records.items()}}


def print_short(description: dict[str, object]) -> None:
    """Print what is for programs readably: sizes with a unit, and files as a number."""
    rows = [(k, _readable(k, value)) for k, value in description.items() if k not in _HIDDEN]
    print_table(rows)


def _readable(key: str, value: object) -> object:
    match value:
        case bool() if key == "tried":
            return "yes" if value else "not tried on the published weights"
        case bool():
            return "yes" if value else "no"
        case int() if key in _UNITS:
            return _UNITS[key](value) if value else "unknown"
        case None | "" | [] | ():
            return "none"
        case dict() | list() if key == "files" and value:
            return f"{len(value)}, compared with their record when they are opened"
        case dict():
            return ", ".join(f"{name} {number}" for name, number in value.items()) or "none"
        case list() | tuple():
            return ", ".join(map(str, value))
    return value


def _licence(path: Path) -> str:
    """What a model's files say; a damaged file says nothing."""
    from nanochat.export.format import ModelFiles
    from nanochat.export.formats import detect

    files = ModelFiles(path)
    try:
        return detect(files).licence(files)
    except (ConfigError, FormatError, ModelNotFoundError):
        return "unknown"


def auto_backend() -> str:
    """What would run a model here."""
    from nanochat import backends

    return backends.choose("auto")[0]
