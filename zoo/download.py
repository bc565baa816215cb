"""This file holds the fetching of a model from the Hugging Face Hub: only what is needed, and nothing unchecked.

The client does the transfer, in parallel and with its own cache. What it does not do is done here:

* All files are of one commit, whatever happens to the repository meanwhile.
* Every file is compared with the Hub's own record of it, each time before it is opened.
* A branch is said to be here when all of it is: an interrupted update leaves the model that was there.
* A large file goes on where a cut or a kill left it. The client goes on only while it lives, and not after a reset. So
  its own function fetches into a file that stays, and moves to where the client looks when it is whole.
"""

import dataclasses
import glob
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import sleep

from huggingface_hub import constants, get_cached_repo_tree, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HfHubHTTPError,
    RevisionResolutionError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it exports them on demand
    WeakFileLock,
    build_hf_headers,
)

from nanochat import __version__
from nanochat.errors import (
    FormatError,
    InputError,
    ModelNotFoundError,
    NanochatError,
    SaveError,
)
from nanochat.export.formats import Candidate, candidates
from nanochat.files import atomic_write, exists, read_bytes
from nanochat.tensors import MAX_INDEX_BYTES
from nanochat.zoo.cache import storage
from nanochat.zoo.candidates import Fetched, Request, choose, fitting, require_model
from nanochat.zoo.checking import (
    LARGE_BYTES,
    compared_beside,
    damaged_files,
    is_in_cache,
    is_listed,
    left_to_another_thread,
    verified_files,
)
from nanochat.zoo.client import (
    LIBRARY,
    client,
    error_text,
    hub_errors,
    is_unreachable,
    require_token,
)
from nanochat.zoo.listing import COMMIT, commit_there, files_there, require_record
from nanochat.zoo.verified import VerifiedFiles

__all__ = ["PARTIAL", "fetch"]

# The suffix of what came of a large file so far, beside where it belongs.
PARTIAL = ".partial"
# Attempts that bring nothing before the line is taken for dead, and seconds before each.
_PATIENCE = 5
_PAUSE = 1.0
_WORKERS = 8
_LOGGER = logging.getLogger(__name__)


def fetch(request: Request) -> Fetched:
    """Bring a model here, if it is not, and compare every file of it with the Hub's record."""
    request = dataclasses.replace(request, token=require_token(request.token))
    is_offline = request.local_files_only or constants.is_offline_mode()
    if is_offline and request.force_download:
        raise InputError(
            "force_download fetches again, which local_files_only and HF_HUB_OFFLINE forbid: leave one of them out"
        )
    if is_offline:
        return _open_here(request)
    try:
        return _fetch_or_open(request)
    except ModelNotFoundError as error:
        # A repository may be gone, closed or refuse, and what was fetched before is still the model.
        try:
            _open_here(request)
        except NanochatError:
            raise error from error.__cause__
        raise ModelNotFoundError(
            f"{error}; a copy that was fetched before is here: HF_HUB_OFFLINE=1, or local_files_only, opens it"
        ) from error


def _fetch_or_open(request: Request) -> Fetched:
    commit = _commit(request)
    if commit is None:
        return _open_here(request)
    snapshot = _snapshot(request, commit)
    listed = _files_here(request, commit)
    model, wanted = _chosen(request, snapshot, listed or files_there(request, commit))
    if request.force_download or listed is None or not _is_here(model, snapshot):
        if listed is not None:
            # The client's copy of a listing leaves out what large files are recognized by.
            model, wanted = _chosen(request, snapshot, files_there(request, commit))
        _require_space(request, wanted.values())
        if not request.force_download:
            with hub_errors(request.repo, revision=request.revision):
                _fetch_large(request, commit, wanted.values())
        _transfer(request, commit, wanted, force=request.force_download)
    later = left_to_another_thread(request, snapshot, wanted)
    _repair(request, snapshot, {n: file for n, file in wanted.items() if n not in later})
    _remember(request, commit)
    return _fetched(request, snapshot, model, wanted, later)


def _chosen(
    request: Request, snapshot: Path, files: Mapping[str, RepoFile]
) -> tuple[Candidate, dict[str, RepoFile]]:
    """The model to open among the files of a commit, and the Hub's record of what it needs."""
    require_record(files, where=request.repo)
    found = candidates(files)
    require_model(found, files, where=request.repo)
    model = choose(found, backend=request.backend, part=request.part, where=_name(request))

    def read(name: str) -> bytes:
        wanted = {name: files[name]}
        if not (snapshot / name).is_file():
            _transfer(request, snapshot.name, wanted, force=False)
        _repair(request, snapshot, wanted)
        return read_bytes(snapshot / name, limit=MAX_INDEX_BYTES)

    model = model.complete(files.__contains__, read, where=request.repo)
    missing = sorted(set(model.files) - files.keys())
    if missing:
        raise FormatError(
            f"{request.repo} lacks {missing[0]}, which another of its files names: the upload is incomplete; choose "
            "another repository or revision"
        )
    return model, {name: files[name] for name in model.files}


def _open_here(request: Request) -> Fetched:
    """What was fetched before, without a request to the Hub."""
    snapshot = _snapshot(request, _commit_here(request))
    files = _files_here(request, snapshot.name)
    if files is None:
        raise ModelNotFoundError(
            f"what is here of {request.repo} has no record to be compared with: {_reconnect()} and load it again"
        )
    require_record(files, where=request.repo)
    found = candidates(files)
    here = list(_here(found, snapshot, files))
    if not fitting(here, request.part) and fitting(found, request.part):
        there = ", ".join(c.place or c.kind for c in here) or "nothing of it"
        raise ModelNotFoundError(
            f"{_name(request, request.part)} was not fetched completely before; {there} is here: {_reconnect()} and "
            "try again"
        )
    model = choose(here, backend=request.backend, part=request.part, where=_name(request))
    wanted = {name: files[name] for name in model.files}
    later = left_to_another_thread(request, snapshot, wanted)
    now = {name: file for name, file in wanted.items() if name not in later}
    damaged = damaged_files(request, snapshot, now)
    if damaged:
        raise FormatError(
            f"{snapshot / damaged[0]}: not what the Hub's record says, so it is damaged: {_reconnect()} and load "
            f"{request.repo} again"
        )
    return _fetched(request, snapshot, model, wanted, later)


def _reconnect() -> str:
    return "unset HF_HUB_OFFLINE, connect" if constants.is_offline_mode() else "connect"


def _fetched(
    request: Request,
    snapshot: Path,
    model: Candidate,
    wanted: Mapping[str, RepoFile],
    later: Mapping[str, RepoFile],
) -> Fetched:
    return Fetched(
        repo=request.repo,
        snapshot=snapshot,
        model=model,
        bytes=sum(file.size for file in wanted.values()),
        is_listed=lambda name, record: is_listed(wanted[name], record),
        is_whole=compared_beside(request, snapshot, later),
    )


def _here(
    found: Iterable[Candidate], snapshot: Path, files: Mapping[str, RepoFile]
) -> Iterator[Candidate]:
    """The models of a commit of which all files are on this disk."""

    def read(name: str) -> bytes:
        if not (snapshot / name).is_file():
            raise FileNotFoundError(name)
        return read_bytes(snapshot / name, limit=MAX_INDEX_BYTES)

    for one in found:
        with suppress(FileNotFoundError):
            whole = one.complete(files.__contains__, read, where=str(snapshot))
            if _is_here(whole, snapshot):
                yield whole


def _is_here(model: Candidate, snapshot: Path) -> bool:
    return all((snapshot / name).is_file() for name in model.files)


def _commit(request: Request) -> str | None:
    """The commit that a revision stands for; `None` if the Hub cannot be asked, but something was fetched before."""
    with hub_errors(request.repo, revision=request.revision):
        try:
            return commit_there(request)
        # Whatever happened to the line.
        except Exception as error:
            if not is_unreachable(error):
                raise
            commit = _commit_here(request, f"and the Hub is out of reach ({error_text(error)})")
            _LOGGER.warning(
                "the Hub is out of reach: %s is the copy of commit %s that was fetched before",
                request.repo,
                commit[:12],
            )
            return None


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
    if not COMMIT.fullmatch(commit):
        if constants.is_offline_mode():
            why = "and HF_HUB_OFFLINE is set"
        advice = (
            f"{_reconnect()} and try again"
            if why
            else f"`nanochat models pull {request.repo}` does that"
        )
        raise ModelNotFoundError(
            f"{_name(request)} is no directory or file here, was not fetched before{why and ', '}{why}: {advice}, or "
            "pass the path of a model"
        )
    return commit


def _files_here(request: Request, commit: str) -> dict[str, RepoFile] | None:
    """Every file of a commit, as the Hub has recorded it, if that was asked before: a commit never changes."""
    try:
        entries = get_cached_repo_tree(request.repo, revision=commit, cache_dir=request.cache_dir)
    except CachedRepoTreeNotFoundError:
        return None
    return {entry.path: entry for entry in entries}


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


def _fetch_large(request: Request, commit: str, files: Iterable[RepoFile]) -> None:
    """Bring large files to where the client keeps its files, each going on from where it was."""
    place, known = storage(request.repo, request.cache_dir), verified_files(request)
    with ThreadPoolExecutor(_WORKERS) as pool:
        # The first error, once all have ended.
        list(pool.map(lambda file: _fetch_one(request, commit, file, place, known), files))


def _fetch_one(
    request: Request, commit: str, file: RepoFile, storage: Path, known: VerifiedFiles
) -> None:
    if file.lfs is None or file.size < LARGE_BYTES:
        return
    place = storage / "blobs" / file.lfs.sha256
    if exists(place):
        return
    # The lock under which the client fetches this file.
    lock = storage.parent / ".locks" / storage.name / f"{file.lfs.sha256}.lock"
    for folder in (place.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        # Another process may have been faster.
        if exists(place):
            return
        partial = place.with_name(place.name + PARTIAL)
        _append_rest(request, commit, file, partial)
        # Whole or not, it is read here, before it is taken for the file; and there no more.
        partial.replace(place)
        if known.record(place).sha256 != file.lfs.sha256:
            # The client fetches it whole.
            place.unlink()
            _LOGGER.warning("%s was damaged on its way: fetched again", file.path)
            return
        known.save()


def _append_rest(request: Request, commit: str, file: RepoFile, partial: Path) -> None:
    """Append to a partial file what is missing, for as long as anything comes."""
    url = hf_hub_url(request.repo, file.path, revision=commit)
    headers = build_hf_headers(
        token=request.token, library_name=LIBRARY, library_version=__version__
    )
    failures = 0
    with partial.open("ab+") as output:
        while (size := output.seek(0, 2)) != file.size:
            if size > file.size:
                size = output.truncate(0)
            try:
                http_get(
                    url,
                    output,
                    resume_size=size,
                    headers=headers,
                    expected_size=file.size,
                    displayed_filename=file.path,
                )
            except HfHubHTTPError:
                raise
            # The client's own exceptions are another library's in every major version.
            except Exception as error:
                output.flush()
                if isinstance(error, OSError) and error.errno is not None:
                    # The disk's.
                    raise
                failures = 0 if output.seek(0, 2) > size else failures + 1
                if failures == _PATIENCE:
                    raise
                _LOGGER.warning("%s was cut (%s): going on", file.path, error_text(error))
                sleep(_PAUSE)


def _repair(request: Request, snapshot: Path, wanted: Mapping[str, RepoFile]) -> None:
    """Fetch once more what is not as recorded."""
    damaged = damaged_files(request, snapshot, wanted)
    if not damaged:
        return
    _LOGGER.warning("%s was damaged on its way or on this disk: fetched again", damaged[0])
    # The client would leave a link as it is.
    _delete_files(snapshot, damaged)
    _transfer(request, snapshot.name, damaged, force=True)
    damaged = damaged_files(request, snapshot, {name: wanted[name] for name in damaged})
    if damaged:
        _delete_files(snapshot, damaged)
        raise FormatError(
            f"{request.repo}: {damaged[0]} is not what the Hub's own record says, twice, and was deleted: a proxy or "
            "mirror on the way changes it; fetch it another way, or later"
        )


def _delete_files(snapshot: Path, names: Iterable[str]) -> None:
    """Delete files of a commit, and what they are links to, but nothing outside of the client's cache."""
    for name in names:
        path = snapshot / name
        if is_in_cache(path, snapshot):
            path.resolve().unlink(missing_ok=True)
        if is_in_cache(path.parent, snapshot):
            path.unlink(missing_ok=True)


def _remember(request: Request, commit: str) -> None:
    """Write that a branch or tag is here, where the client looks it up."""
    if request.revision == commit:
        return
    place = storage(request.repo, request.cache_dir) / "refs" / (request.revision or "main")
    content = commit.encode()
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
