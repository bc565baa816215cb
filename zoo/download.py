"""This file holds the fetching of a model from the Hugging Face Hub: only what is needed, and nothing unchecked.

The client does the transfer, in parallel and with its own cache. What it does not do is done here, and in
`nanochat.zoo.resume`. All files are of one commit, whatever happens to the repository meanwhile. Every file is compared
with the Hub's own record of it, each time before it is opened. And a branch is only said to be here when all of it is:
an update that was interrupted leaves the model that was there.
"""

import glob
import logging
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    OfflineModeIsEnabled,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoFile

from nanochat import __version__
from nanochat.errors import FormatError, ModelNotFoundError, SaveError
from nanochat.files import atomic_write, exists
from nanochat.zoo.cache import storage
from nanochat.zoo.client_errors import in_words, is_unreachable, reading_errors
from nanochat.zoo.compare import damaged_files, delete_files
from nanochat.zoo.layout import Candidate, candidates, choose, require_inside, require_model
from nanochat.zoo.location import Fetched, Request
from nanochat.zoo.resume import fetch_large

__all__ = ["fetch"]

_LIBRARY = "nanochat-ternary"
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
    commit, is_offline = _commit(request)
    files = _files_here(request, commit) if is_offline else _files_of(request, commit)
    require_inside(files, where=request.repo)
    found = candidates(files)
    require_model(found, files, where=request.repo)
    snapshot = storage(request.repo, request.cache_dir) / "snapshots" / commit
    if is_offline:
        found = _complete(found, snapshot, request.repo)
    model = choose(found, backend=request.backend, part=request.part, where=_name(request))
    wanted = {name: files[name] for name in model.files}
    if is_offline:
        _require_undamaged(request, snapshot, wanted)
    else:
        _download(request, snapshot, wanted)
        _remember(request, commit)
    return Fetched(
        repo=request.repo,
        path=snapshot / model.place if model.place else snapshot,
        snapshot=snapshot,
        commit=commit,
        model=model,
        bytes=sum(file.size for file in wanted.values()),
    )


def _complete(found: Sequence[Candidate], snapshot: Path, repo: str) -> list[Candidate]:
    """The models of which all files are here."""
    here = [c for c in found if all((snapshot / name).is_file() for name in c.files)]
    if not here:
        raise ModelNotFoundError(
            f"{repo} was not fetched completely before, and the Hub is not asked or out of reach: connect and try again"
        )
    return here


def _commit(request: Request) -> tuple[str, bool]:
    """The commit that a revision stands for, and whether only what is here can be used."""
    if request.local_files_only:
        return _commit_here(request, "and only what is here may be used"), True
    if _COMMIT.fullmatch(request.revision):
        return request.revision, False
    with reading_errors(request.repo, revision=request.revision):
        try:
            info = _api(request).repo_info(request.repo, revision=request.revision or None)
        # The client's own exceptions are another library's in every major version.
        except Exception as error:
            if not is_unreachable(error):
                raise
            if isinstance(error, OfflineModeIsEnabled):
                return _commit_here(request, "and HF_HUB_OFFLINE is set"), True
            commit = _commit_here(request, f"and the Hub is out of reach ({in_words(error)})")
            _LOGGER.warning(
                "the Hub is out of reach: %s is the copy of commit %s that was fetched before",
                request.repo,
                commit[:12],
            )
            return commit, True
    if info.sha is None:
        raise ModelNotFoundError(
            f"the Hub names no commit of {request.repo}: check HF_ENDPOINT, and try again"
        )
    return info.sha, False


def _commit_here(request: Request, why: str) -> str:
    """The commit that was fetched before."""
    try:
        resolved = _api(request).resolve_revision(
            request.repo,
            revision=request.revision or None,
            cache_dir=request.cache_dir,
            local_files_only=True,
        )
    except RevisionResolutionError as error:
        raise ModelNotFoundError(
            f"{_name(request)} is no directory here, was not fetched before, {why}: connect and try again, or pass the "
            "path of a model"
        ) from error
    return str(resolved.resolved)


def _files_of(request: Request, commit: str) -> dict[str, RepoFile]:
    """Every file of a commit, as the Hub records it."""
    try:
        # A commit never changes, so what was listed once need not be asked again.
        return _files_here(request, commit)
    except ModelNotFoundError:
        pass
    with reading_errors(request.repo, revision=request.revision):
        entries = list(_api(request).list_repo_tree(request.repo, revision=commit, recursive=True))
    return {e.path: e for e in entries if isinstance(e, RepoFile)}


def _files_here(request: Request, commit: str) -> dict[str, RepoFile]:
    try:
        entries = get_cached_repo_tree(request.repo, revision=commit, cache_dir=request.cache_dir)
    except CachedRepoTreeNotFoundError as error:
        raise ModelNotFoundError(
            f"what is here of {request.repo} has no record to be compared with: connect and load it again"
        ) from error
    return {entry.path: entry for entry in entries}


def _download(request: Request, snapshot: Path, wanted: Mapping[str, RepoFile]) -> None:
    """Fetch what is not here, and once more what is not as recorded."""
    if request.force_download or not all(exists(snapshot / name) for name in wanted):
        _require_space(request, wanted.values())
        _fetch_missing(request, snapshot.name, wanted)
    damaged = damaged_files(snapshot, wanted)
    if damaged:
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
        with reading_errors(request.repo, revision=request.revision):
            place = storage(request.repo, request.cache_dir)
            fetch_large(request, commit, wanted.values(), storage=place)
    _transfer(request, commit, wanted, force=request.force_download)


def _transfer(request: Request, commit: str, names: Iterable[str], *, force: bool) -> None:
    with reading_errors(request.repo, revision=request.revision):
        snapshot_download(
            request.repo,
            revision=commit,
            token=request.token,
            cache_dir=request.cache_dir,
            force_download=force,
            # The client takes names for patterns.
            allow_patterns=[glob.escape(name) for name in names],
            library_name=_LIBRARY,
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


def _require_undamaged(request: Request, snapshot: Path, wanted: Mapping[str, RepoFile]) -> None:
    damaged = damaged_files(snapshot, wanted)
    if damaged:
        raise FormatError(
            f"{snapshot / damaged[0]}: not what the Hub's record says, so it is damaged: connect, and load "
            f"{request.repo} again"
        )


def _remember(request: Request, commit: str) -> None:
    """Write that a branch or tag is here, where the client looks it up."""
    revision = request.revision or _MAIN
    place = storage(request.repo, request.cache_dir) / "refs" / revision
    content = commit.encode()
    if revision == commit or (exists(place) and place.read_bytes() == content):
        return
    try:
        atomic_write(place, content)
    except SaveError as error:
        # The model is here all the same.
        _LOGGER.warning("%s will not be found without the Hub: %s", _name(request), error)


def _api(request: Request) -> HfApi:
    return HfApi(token=request.token, library_name=_LIBRARY, library_version=__version__)


def _name(request: Request) -> str:
    return f"{request.repo}@{request.revision}" if request.revision else request.repo
