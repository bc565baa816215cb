"""This file holds the fetching of a model from the Hugging Face Hub: only what is needed, and nothing unchecked.

The client does the transfer, in parallel and with its own cache. What it does not do is done here, and in
`nanochat.zoo.resume`. All files are of one commit, whatever happens to the repository meanwhile. Every file is compared
with the Hub's own record of it, each time before it is opened. And a branch is only said to be here when all of it is:
an update that was interrupted leaves the model that was there.
"""

import dataclasses
import glob
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoFile

from nanochat import __version__
from nanochat.errors import FormatError, InputError, ModelNotFoundError, SaveError
from nanochat.export.formats import Candidate, candidates
from nanochat.files import atomic_write, exists
from nanochat.zoo.cache import storage
from nanochat.zoo.client import (
    LIBRARY,
    client,
    hub_errors,
    in_words,
    is_unreachable,
    require_token,
)
from nanochat.zoo.compare import damaged_files, delete_files, require_record
from nanochat.zoo.layout import Fetched, Request, choose, fitting, require_model
from nanochat.zoo.resume import fetch_large

__all__ = ["fetch"]

_MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOGGER = logging.getLogger(__name__)


def fetch(request: Request) -> Fetched:
    """Bring a model here, if it is not, and compare every file of it with the Hub's record.

    Raises
    ------
    ModelNotFoundError
        If there is no such model or revision, it cannot be reached, or is not here where it must be.
    FormatError
        If a file is not what the Hub's record says, or its name leads out of its folder.
    SaveError
        If it cannot be stored.
    """
    request = dataclasses.replace(request, token=require_token(request.token))
    is_offline = request.local_files_only or constants.is_offline_mode()
    if is_offline and request.force_download:
        raise InputError(
            "force_download fetches again, which local_files_only and HF_HUB_OFFLINE forbid: leave one of them out"
        )
    commit = None if is_offline else _commit(request)
    if commit is None:
        return _open_here(request)
    snapshot = _snapshot(request, commit)
    listed = _files_here(request, commit)
    model, wanted = _chosen(request, listed or _files_there(request, commit))
    if request.force_download or listed is None or not _is_here(model, snapshot):
        if listed is not None:
            # The client's copy of a listing leaves out what large files are recognized by.
            model, wanted = _chosen(request, _files_there(request, commit))
        _require_space(request, wanted.values())
        _fetch_missing(request, commit, wanted)
    _repair(request, snapshot, wanted)
    _remember(request, commit)
    return _fetched(request, snapshot, model, wanted)


def _chosen(
    request: Request, files: Mapping[str, RepoFile]
) -> tuple[Candidate, dict[str, RepoFile]]:
    """The model to open among the files of a commit, and the Hub's record of what it needs."""
    require_record(files, where=request.repo)
    found = candidates(files)
    require_model(found, files, where=request.repo)
    model = choose(found, backend=request.backend, part=request.part, where=_name(request))
    return model, {name: files[name] for name in model.files}


def _open_here(request: Request) -> Fetched:
    """What was fetched before, without a request to the Hub."""
    snapshot = _snapshot(request, _commit_here(request))
    files = _files_here(request, snapshot.name)
    if files is None:
        raise ModelNotFoundError(
            f"what is here of {request.repo} has no record to be compared with: connect and load it again"
        )
    require_record(files, where=request.repo)
    found = candidates(files)
    here = [candidate for candidate in found if _is_here(candidate, snapshot)]
    if not fitting(here, request.part) and fitting(found, request.part):
        there = ", ".join(c.place or c.kind for c in here) or "nothing of it"
        raise ModelNotFoundError(
            f"{_name(request, request.part)} was not fetched completely before; {there} is here: connect and try again"
        )
    model = choose(here, backend=request.backend, part=request.part, where=_name(request))
    wanted = {name: files[name] for name in model.files}
    damaged = damaged_files(snapshot, wanted)
    if damaged:
        raise FormatError(
            f"{snapshot / damaged[0]}: not what the Hub's record says, so it is damaged: connect, and load "
            f"{request.repo} again"
        )
    return _fetched(request, snapshot, model, wanted)


def _fetched(
    request: Request, snapshot: Path, model: Candidate, wanted: Mapping[str, RepoFile]
) -> Fetched:
    return Fetched(
        repo=request.repo,
        path=snapshot / model.place if model.place else snapshot,
        snapshot=snapshot,
        commit=snapshot.name,
        model=model,
        bytes=sum(file.size for file in wanted.values()),
    )


def _is_here(model: Candidate, snapshot: Path) -> bool:
    return all((snapshot / name).is_file() for name in model.files)


def _commit(request: Request) -> str | None:
    """The commit that a revision stands for; `None` if the Hub cannot be asked, but something was fetched before."""
    if _COMMIT.fullmatch(request.revision):
        return request.revision
    with hub_errors(request.repo, revision=request.revision):
        try:
            info = client(request.token).repo_info(request.repo, revision=request.revision or None)
        # Whatever happened to the line.
        except Exception as error:
            if not is_unreachable(error):
                raise
            commit = _commit_here(request, f"and the Hub is out of reach ({in_words(error)})")
            _LOGGER.warning(
                "the Hub is out of reach: %s is the copy of commit %s that was fetched before",
                request.repo,
                commit[:12],
            )
            return None
    # It becomes the name of a folder.
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise ModelNotFoundError(
            f"the Hub names no commit of {request.repo}: check HF_ENDPOINT, and try again"
        )
    return info.sha


def _commit_here(request: Request, why: str = "") -> str:
    """The commit that was fetched before."""
    try:
        resolved = client(request.token).resolve_revision(
            request.repo,
            revision=request.revision or None,
            cache_dir=request.cache_dir,
            local_files_only=True,
        )
        commit = str(resolved.resolved)
    except (RevisionResolutionError, OSError):
        commit = ""
    if not _COMMIT.fullmatch(commit):
        if constants.is_offline_mode():
            why = "and HF_HUB_OFFLINE is set"
        advice = (
            "connect and try again" if why else f"`nanochat models pull {request.repo}` does that"
        )
        raise ModelNotFoundError(
            f"{_name(request)} is no directory here, was not fetched before{why and ', '}{why}: {advice}, or pass the "
            "path of a model"
        )
    return commit


def _files_here(request: Request, commit: str) -> dict[str, RepoFile] | None:
    """Every file of a commit, as the Hub has recorded it, if that was asked before: a commit never changes."""
    try:
        entries = get_cached_repo_tree(request.repo, revision=commit, cache_dir=request.cache_dir)
    except CachedRepoTreeNotFoundError:
        return None
    return {entry.path: entry for entry in entries}


def _files_there(request: Request, commit: str) -> dict[str, RepoFile]:
    with hub_errors(request.repo, revision=request.revision):
        entries = list(
            client(request.token).list_repo_tree(request.repo, revision=commit, recursive=True)
        )
    return {e.path: e for e in entries if isinstance(e, RepoFile)}


def _repair(request: Request, snapshot: Path, wanted: Mapping[str, RepoFile]) -> None:
    """Fetch once more what is not as recorded."""
    damaged = damaged_files(snapshot, wanted)
    if not damaged:
        return
    _LOGGER.warning("%s was damaged on its way or on this disk: fetched again", damaged[0])
    # The client would leave a link as it is.
    delete_files(snapshot, damaged)
    _transfer(request, snapshot.name, damaged, force=True)
    damaged = damaged_files(snapshot, {name: wanted[name] for name in damaged})
    if damaged:
        delete_files(snapshot, damaged)
        raise FormatError(
            f"{request.repo}: {damaged[0]} is not what the Hub's own record says, twice, and was deleted: a proxy or "
            "mirror on the way changes it; fetch it another way, or later"
        )


def _fetch_missing(request: Request, commit: str, wanted: Mapping[str, RepoFile]) -> None:
    if not request.force_download:
        with hub_errors(request.repo, revision=request.revision):
            place = storage(request.repo, request.cache_dir)
            fetch_large(request, commit, wanted.values(), storage=place)
    _transfer(request, commit, wanted, force=request.force_download)


def _transfer(request: Request, commit: str, names: Iterable[str], *, force: bool) -> None:
    with hub_errors(request.repo, revision=request.revision):
        snapshot_download(
            request.repo,
            revision=commit,
            token=request.token,
            cache_dir=request.cache_dir,
            force_download=force,
            # The client takes names for patterns.
            allow_patterns=[glob.escape(name) for name in names],
            library_name=LIBRARY,
            library_version=__version__,
        )


def _require_space(request: Request, files: Iterable[RepoFile]) -> None:
    """Refuse a download for which the disk has no room, before it begins."""
    place = storage(request.repo, request.cache_dir)
    blobs = place / "blobs"
    here = {path.name for path in blobs.iterdir()} if blobs.is_dir() else set()
    needed = sum(f.size for f in files if not here & {f.blob_id, f.lfs.sha256 if f.lfs else ""})
    free = shutil.disk_usage(next(folder for folder in place.parents if exists(folder))).free
    if needed > free:
        raise SaveError(
            f"{request.repo} takes {needed / 1e9:.2f} GB, but {place.parent} has {free / 1e9:.2f} GB left: free "
            "space, or pass another cache_dir"
        )


def _remember(request: Request, commit: str) -> None:
    """Write that a branch or tag is here, where the client looks it up."""
    revision = request.revision or _MAIN
    place = storage(request.repo, request.cache_dir) / "refs" / revision
    content = commit.encode()
    if revision == commit:
        return
    try:
        if not exists(place) or place.read_bytes() != content:
            atomic_write(place, content)
    except OSError as error:
        # The model is here all the same.
        _LOGGER.warning("%s will not be found without the Hub: %s", _name(request), error)


def _snapshot(request: Request, commit: str) -> Path:
    return storage(request.repo, request.cache_dir) / "snapshots" / commit


def _name(request: Request, part: str = "") -> str:
    revision = f"@{request.revision}" if request.revision else ""
    return f"{request.repo}{revision}{part and ':'}{part}"
