"""This file holds the way from a model's name to its files: what is on disk, the catalog, the Hugging Face Hub."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from nanochat.backends import wanted as wanted_backend
from nanochat.bundle import CARD
from nanochat.errors import FormatError, ModelNotFoundError
from nanochat.export.formats import candidates, is_file_name, model_path
from nanochat.files import require_as_recorded
from nanochat.zoo.candidates import Fetched, Location, Request, choose
from nanochat.zoo.catalog import (
    CATALOG,
    canonical,
    directory,
    entry_of,
    require_meant,
    require_pinned,
    similar,
)
from nanochat.zoo.entries import Entry

__all__ = ["is_repo", "locate", "opened", "resolve", "split_name"]

T = TypeVar("T")

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# What is often pasted instead of a name.
_ADDRESS = re.compile(r"(?:https?://(?:huggingface|hf)\.co/)?(\w[^/@:\s]*/[^/@:\s]+)/(?:tree/.*)?")
_NAME = re.compile(r"(?P<model>[^@:]*)(@(?P<revision>[^:]*))?(:(?P<part>.*))?", re.DOTALL)
_LOGGER = logging.getLogger(__name__)


def resolve(
    name: str, *, backend: str = "auto", unpinned: bool = False, verify: bool = False
) -> Path:
    """Return the directory, ``.gguf`` or ``.onnx`` file that a name stands for; see `locate`."""
    return locate(name, backend=backend, unpinned=unpinned, verify=verify).path


def locate(
    name: str,
    *,
    backend: str = "auto",
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    unpinned: bool = False,
    verify: bool = False,
    beside: bool = False,
) -> Location:
    """Find the files that a name stands for, and fetch them if need be.

    Parameters
    ----------
    name : str
        In this order: the path of a directory, ``.gguf`` or ``.onnx`` file that exists, a name of the catalog, or
        ``owner/name`` on the Hugging Face Hub. The last two may go on with ``@revision`` and with ``:part``, which
        chooses among several formats: "gguf", "onnx", a folder, a file, or a GGUF type such as TQ2_0.
    backend : str
        What will run it, for which the best of several formats is taken.
    revision : str, optional
        Branch, tag or commit on the Hub; absent is the main branch. Nothing but a model of the Hub has one.
    token : str, optional
        Access token; absent is the one of ``hf auth login`` or ``HF_TOKEN``.
    cache_dir : str or Path, optional
        Where downloads stay; absent is the Hub's own cache.
    local_files_only : bool
        Use what was fetched before, without the network.
    force_download : bool
        Fetch again what was fetched before.
    unpinned : bool
        Take what is at the Hub today for a name of the catalog of which no commit is known.
    verify : bool
        Compare every file with its record by reading it; otherwise files that were read before are known by their
        size, times and inode.
    beside : bool
        Return before all large files have been read, which another thread does. Whoever uses the model asks
        `Location.is_whole` first, and where it is not, calls this again without `beside`.
    """
    backend = wanted_backend(backend)
    path = _on_disk(name)
    if path is not None:
        if canonical(name) in CATALOG:
            _LOGGER.warning("%s is a directory here, and comes before the model of that name", name)
        elif is_repo(name) and path.is_dir():
            _LOGGER.info("%s is a directory here, and comes before a model of the Hub", name)
        if revision:
            raise _without_revisions(name, revision, f"it is at {path}")
        _LOGGER.debug("%s is at %s", name, path)
        return _at(path, backend)
    model, suffix, part = split_name(name)
    entry = CATALOG.get(canonical(model))
    if entry is not None and entry.repo is None:
        if suffix or revision:
            raise _without_revisions(model, suffix or revision, "it is part of this package")
        if part:
            raise ModelNotFoundError(
                f"{model} has no part {part!r:.80}: it is in one format only; leave it out"
            )
        path = directory(entry)
        require_pinned(entry, path)
        return Location(path=path, name=model, entry=entry)
    if entry is not None and not unpinned:
        require_meant(entry)
    repo = model if entry is None or entry.repo is None else entry.repo
    if not is_repo(repo):
        if _on_disk(model) is not None:
            if suffix:
                raise _without_revisions(model, suffix, "it is on this disk")
            raise ModelNotFoundError(
                f"{model} is on this disk: pass the path of its part {part!r:.80} instead"
            )
        raise _unknown(name)
    if suffix and revision and suffix != revision:
        raise ModelNotFoundError(
            f"{name} and revision={revision!r} name two revisions: pass one of them"
        )
    # Late, because most names lead to no download, and the client takes 0.3 s to load.
    from nanochat.zoo.download import fetch

    wanted = suffix or revision or ""
    usual = entry.part if entry is not None else ""
    fetched = fetch(
        Request(
            repo=repo,
            revision=_revision(wanted, entry),
            part=part or usual,
            backend=backend,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            verify=verify,
            beside=beside,
        )
    )
    if entry is not None:
        _require_meant(entry, fetched, wanted=wanted, part=part)
    return Location(
        path=fetched.path,
        name=model if entry else repo.partition("/")[2],
        fetched=fetched,
        entry=entry or entry_of(repo),
    )


def opened(
    name: str, open_: Callable[[Location], T], *, force_download: bool = False, **options: Any
) -> T:
    """What `open_` makes of the files that a name stands for, of which the large ones are compared meanwhile.

    Nothing is given back of a file that turns out to be damaged: it is fetched again, or refused.

    Parameters
    ----------
    force_download, options
        Of `locate`.
    """
    location = locate(name, force_download=force_download, beside=True, **options)
    try:
        made = open_(location)
    except Exception:
        # What is damaged may be anything, and end in any error.
        if location.is_whole():
            raise
    else:
        if location.is_whole():
            return made
    return open_(locate(name, **options))


def split_name(name: str) -> tuple[str, str, str]:
    """The model, the revision and the part of a name; the last two may be empty.

    >>> split_name("owner/name@v2:TQ2_0"), split_name("tiny")
    (('owner/name', 'v2', 'TQ2_0'), ('tiny', '', ''))
    """
    parsed = _NAME.fullmatch(name)
    assert parsed is not None
    return parsed["model"], parsed["revision"] or "", parsed["part"] or ""


def is_repo(name: str) -> bool:
    """Whether a name has the form ``owner/name`` of a repository of the Hub."""
    # The Hub's own client refuses the rest.
    odd = "--" in name or ".." in name or name.endswith(("-", ".", ".git")) or len(name) > 96
    return _REPO.fullmatch(name) is not None and not odd


def _on_disk(name: str) -> Path | None:
    # No file can have some names: too long, with a null character, of an unknown user.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = Path(name).expanduser()
        # An empty name would be the current directory.
        if (name and path.is_dir()) or (is_file_name(path.name) and path.is_file()):
            return path
    return None


def _at(path: Path, backend: str) -> Location:
    """The model in a file or directory; a directory may hold several, as a repository may."""
    whole = path.resolve()
    if path.is_file():
        return Location(path=path, name=whole.stem)
    found = candidates(_files_in(path))
    if not found:
        # Whoever reads it says what is missing.
        return Location(path=path, name=whole.name)
    model = choose(found, backend=backend, part="", where=str(path), separator="/")
    return Location(path=path / model.place, name=whole.name)


def _files_in(folder: Path) -> Iterator[str]:
    """Files in a directory and in the directories in it."""
    for entry in os.scandir(folder):
        if entry.is_file():
            yield entry.name
        elif entry.is_dir() and not entry.name.startswith("."):
            try:
                yield from (f"{entry.name}/{e.name}" for e in os.scandir(entry) if e.is_file())
            except OSError:
                # Not for this user to read, and so not the model.
                continue


def _revision(wanted: str, entry: Entry | None) -> str:
    if wanted and (wanted.startswith(("/", "-")) or ".." in wanted or "\0" in wanted):
        raise ModelNotFoundError(f"{wanted!r:.80} is no revision: pass a branch, a tag or a commit")
    return wanted or (entry.revision if entry is not None else "")


def _require_meant(entry: Entry, fetched: Fetched, *, wanted: str, part: str) -> None:
    """Compare a model of the catalog with what the catalog says of its files."""
    if not entry.is_pinned:
        _LOGGER.warning(
            "%s is not pinned: %s of commit %s is compared with the Hub's record only",
            entry.name,
            fetched.model.place or fetched.repo,
            fetched.commit[:12],
        )
        return
    if wanted and wanted != entry.revision:
        _LOGGER.warning(
            "%s: the catalog knows the files of %s, not those of %s, which are compared with the Hub's record only",
            entry.name,
            entry.revision[:12],
            wanted,
        )
        return
    unknown = sorted(set(fetched.model.files) - entry.files.keys() - {CARD})
    if unknown and part not in ("", entry.part):
        _LOGGER.warning(
            "%s: the catalog knows the files of %s, not %s, which is compared with the Hub's record only",
            entry.name,
            entry.part or "one model",
            unknown[0],
        )
        return
    if unknown:
        raise FormatError(
            f"{entry.repo} holds {unknown[0]}, of which the catalog does not know: upgrade nanochat-ternary"
        )
    for name in set(fetched.model.files) - {CARD}:
        # What the Hub lists has been compared with the file.
        if not fetched.is_listed(name, entry.files[name]):
            require_as_recorded(fetched.snapshot / name, entry.files[name], by="the catalog")


def _without_revisions(name: str, revision: str | None, where: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{name:.200} has no revision {revision!r:.80}: {where}, and only models of the Hugging Face Hub have "
        "revisions; leave it out"
    )


def _unknown(name: str) -> ModelNotFoundError:
    address = _ADDRESS.fullmatch(f"{name.rstrip('/')}/")
    if address is not None and is_repo(address[1]):
        return ModelNotFoundError(f"{name:.200} is no name of a model: did you mean {address[1]}?")
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        path = Path(name).expanduser()
        if name and path.is_file():
            return ModelNotFoundError(
                f"{name:.200} is a file, but no model by itself: pass its folder, {path.parent}, or a {model_path()}"
            )
    if name.startswith(("/", ".", "~")) or is_file_name(name):
        return ModelNotFoundError(f"{name:.200}: no such {model_path()}; pass the path of a model")
    close = similar(name)
    if close:
        return ModelNotFoundError(
            f"no model is named {name!r:.200}: did you mean {' or '.join(close)}?"
        )
    return ModelNotFoundError(
        f"no model is named {name!r:.200}: pass {' or '.join(e.name for e in CATALOG.values() if e.files)}, a model of "
        f"the Hugging Face Hub as owner/name, or the path of a {model_path()}"
    )
