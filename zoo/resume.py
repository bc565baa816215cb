"""This file holds the resumption of large downloads: what came of a file before a cut or a kill is not asked for again.

The client goes on after a cut only while it lives, and starts anew after a connection was reset. So large files are
fetched here, by the client's own function, into a file that stays; whole, and compared with their hash, they go where
the client looks for them.
"""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep

from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # it exports them on demand
    WeakFileLock,
    build_hf_headers,
)

from nanochat import __version__
from nanochat.files import exists, record_file
from nanochat.zoo.client import LIBRARY, in_words
from nanochat.zoo.layout import Request

__all__ = ["SUFFIX", "fetch_large"]

# Of what came of a file so far, beside where it belongs.
SUFFIX = ".partial"
# Files under this are soon fetched again.
_LARGE_BYTES = 16 * 10**6
# Attempts that bring nothing before the line is taken for dead, and seconds before each.
_PATIENCE = 5
_PAUSE = 1.0
_WORKERS = 8
_LOGGER = logging.getLogger(__name__)


def fetch_large(request: Request, commit: str, files: Iterable[RepoFile], *, storage: Path) -> None:
    """Bring large files to where the client keeps its files, each going on from where it was.

    Parameters
    ----------
    files : iterable of RepoFile
        What is wanted; small files, and those that are here, are left alone.
    storage : Path
        The client's folder for the repository.
    """
    missing = [
        file
        for file in files
        if file.lfs is not None
        and file.size >= _LARGE_BYTES
        and not exists(storage / "blobs" / file.lfs.sha256)
    ]
    with ThreadPoolExecutor(_WORKERS) as pool:
        # The first error, once all have ended.
        list(pool.map(lambda file: _fetch(request, commit, file, storage), missing))


def _fetch(request: Request, commit: str, file: RepoFile, storage: Path) -> None:
    assert file.lfs is not None
    place = storage / "blobs" / file.lfs.sha256
    # The lock under which the client fetches this file.
    lock = storage.parent / ".locks" / storage.name / f"{file.lfs.sha256}.lock"
    for folder in (place.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if exists(place):
            return
        partial = place.with_name(place.name + SUFFIX)
        _transfer(request, commit, file, partial)
        if record_file(partial).sha256 != file.lfs.sha256:
            # The client fetches it whole.
            partial.unlink()
            _LOGGER.warning("%s was damaged on its way: fetched again", file.path)
            return
        partial.replace(place)


def _transfer(request: Request, commit: str, file: RepoFile, partial: Path) -> None:
    """Append to a partial file what is missing, for as long as anything comes."""
    url = hf_hub_url(request.repo, file.path, revision=commit)
    headers = build_hf_headers(
        token=request.token, library_name=LIBRARY, library_version=__version__
    )
    failures = 0
    with partial.open("ab+") as output:
        while (size := output.seek(0, 2)) != file.size:
            if size > file.size:
                output.truncate(0)
                size = 0
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
                _LOGGER.warning("%s was cut (%s): going on", file.path, in_words(error))
                sleep(_PAUSE)
