"""This file holds the comparison of fetched files with the Hub's record of them: now, or by a thread of its own."""

import hashlib
import io
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import BinaryIO

from huggingface_hub.hf_api import RepoFile

from nanochat.files import FileRecord
from nanochat.zoo.cache import storage
from nanochat.zoo.candidates import Request
from nanochat.zoo.verified import VerifiedFiles

__all__ = [
    "LARGE_BYTES",
    "compared_beside",
    "damaged_files",
    "is_in_cache",
    "is_listed",
    "left_to_another_thread",
    "verified_files",
]

# Files under this are soon fetched again, and soon read.
LARGE_BYTES = 16 * 10**6
_CHUNK_BYTES = 2**20


def left_to_another_thread(
    request: Request, snapshot: Path, wanted: Mapping[str, RepoFile]
) -> dict[str, RepoFile]:
    """The files that take long to read and may be opened meanwhile: of the right size, and where they should be."""
    if not request.beside:
        return {}
    known = verified_files(request)
    paths = {name: snapshot / name for name, f in wanted.items() if f.size >= LARGE_BYTES}
    return {
        name: wanted[name]
        for name, path in paths.items()
        if path.is_file()
        and path.stat().st_size == wanted[name].size
        and is_in_cache(path, snapshot)
        and not known.is_known(path)
    }


def compared_beside(
    request: Request, snapshot: Path, later: Mapping[str, RepoFile]
) -> Callable[[], bool]:
    """Begin to read files on a thread of its own; gives what waits for it, and tells whether they are whole."""
    if not later:
        return lambda: True
    done: Future[list[str]] = Future()

    def compare() -> None:
        try:
            done.set_result(damaged_files(request, snapshot, later))
        # For whoever waits.
        except BaseException as error:
            done.set_exception(error)

    # Nobody who is interrupted waits for it.
    Thread(target=compare, daemon=True).start()
    return lambda: not done.result()


def damaged_files(request: Request, snapshot: Path, wanted: Mapping[str, RepoFile]) -> list[str]:
    """Names of the files that are not what the Hub records; those that are not known to be are read."""
    known = verified_files(request)

    def is_whole(name: str) -> bool:
        path = snapshot / name
        # The snapshot is made of links, which must not lead elsewhere.
        return is_in_cache(path, snapshot) and _is_as_recorded(path, wanted[name], known)

    with ThreadPoolExecutor() as pool:
        found = [n for n, ok in zip(wanted, pool.map(is_whole, wanted), strict=True) if not ok]
    known.save()
    return found


def verified_files(request: Request) -> VerifiedFiles:
    """What is known of the files of a repository that were read before."""
    return VerifiedFiles(storage(request.repo, request.cache_dir), verify=request.verify)


def is_in_cache(path: Path, snapshot: Path) -> bool:
    """Whether links take a path nowhere but into the cache, or to the disk to which the repository's folder is a link.

    A snapshot is the folder cache/models--owner--name/snapshots/commit.
    """
    places = (snapshot.parents[2].resolve(), snapshot.parents[1].resolve())
    return any(path.resolve().is_relative_to(place) for place in places)


def _is_as_recorded(path: Path, recorded: RepoFile, known: VerifiedFiles) -> bool:
    if not path.is_file() or path.stat().st_size != recorded.size:
        return False
    record = known.record(path)
    if recorded.lfs is not None or is_listed(recorded, record):
        return is_listed(recorded, record)
    with path.open("rb") as file:
        return recorded.blob_id == _git_hash(file)


def is_listed(recorded: RepoFile, record: FileRecord) -> bool:
    """Whether a file of that size and SHA-256 is the one in large storage that is listed."""
    if recorded.lfs is not None:
        return (record.bytes, record.sha256) == (recorded.size, recorded.lfs.sha256)
    # It is listed by the text that git keeps for it.
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{record.sha256}\nsize {record.bytes}\n"
    return recorded.blob_id == _git_hash(io.BytesIO(pointer.encode()))


def _git_hash(file: BinaryIO) -> str:
    """The name that git gives to a file's content."""
    sha = hashlib.sha1(b"blob %d\0" % file.seek(0, io.SEEK_END), usedforsecurity=False)
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        sha.update(chunk)
    return sha.hexdigest()
