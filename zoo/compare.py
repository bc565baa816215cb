"""This file holds the comparison of fetched files with the Hub's record of them."""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from huggingface_hub.hf_api import RepoFile

from nanochat.errors import FormatError
from nanochat.files import record_file
from nanochat.zoo.layout import require_inside

__all__ = ["damaged_files", "delete_files", "require_record"]

_CHUNK_BYTES = 2**20
_HEXADECIMAL = re.compile(r"[0-9a-f]+")


def require_record(files: Mapping[str, RepoFile], *, where: str) -> None:
    """Refuse a listing whose names or hashes are none: both become names of files on this disk.

    Raises
    ------
    FormatError
        With the first of them.
    """
    require_inside(files, where=where)
    for name, file in files.items():
        hashes = [(file.blob_id, 40), *([(file.lfs.sha256, 64)] if file.lfs else [])]
        if not all(len(h) == length and _HEXADECIMAL.fullmatch(h) for h, length in hashes):
            raise FormatError(
                f"{where} lists {name!r:.80} with a hash that is none: do not use this repository"
            )


def damaged_files(snapshot: Path, wanted: Mapping[str, RepoFile]) -> list[str]:
    """Names of the files that are not what the Hub records; all are read.

    Parameters
    ----------
    snapshot : Path
        The client's folder for a commit.
    wanted : mapping
        The Hub's record of each file, by name.
    """
    places = _places(snapshot)

    def is_damaged(name: str) -> bool:
        path = snapshot / name
        # The snapshot is made of links, which must not lead elsewhere.
        return not _is_in(path.resolve(), places) or not _is_as_recorded(path, wanted[name])

    with ThreadPoolExecutor() as pool:
        return [name for name, bad in zip(wanted, pool.map(is_damaged, wanted), strict=True) if bad]


def delete_files(snapshot: Path, names: Iterable[str]) -> None:
    """Delete files of a commit, and what they are links to, but nothing outside of the client's cache."""
    places = _places(snapshot)
    for name in names:
        path = snapshot / name
        content = path.resolve()
        if _is_in(content, places):
            content.unlink(missing_ok=True)
        if _is_in(path.parent.resolve(), places):
            path.unlink(missing_ok=True)


def _places(snapshot: Path) -> tuple[Path, Path]:
    """The cache, and the repository's folder in it, which may be a link to another disk."""
    # cache/models--owner--name/snapshots/commit
    return snapshot.parents[2].resolve(), snapshot.parents[1].resolve()


def _is_in(path: Path, places: Iterable[Path]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def _is_as_recorded(path: Path, recorded: RepoFile) -> bool:
    if not path.is_file() or path.stat().st_size != recorded.size:
        return False
    record = record_file(path)
    if recorded.lfs is not None:
        return record.sha256 == recorded.lfs.sha256
    # A file in large storage is recorded by the text that git keeps for it.
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{record.sha256}\nsize {record.bytes}\n"
    return recorded.blob_id in (_git_name(io.BytesIO(pointer.encode())), _git_name_of(path))


def _git_name_of(path: Path) -> str:
    with path.open("rb") as file:
        return _git_name(file)


def _git_name(file: BinaryIO) -> str:
    """The name that git gives to a file's content."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    sha = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while chunk := file.read(_CHUNK_BYTES):
        sha.update(chunk)
    return sha.hexdigest()
