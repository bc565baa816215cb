"""This file holds what the Hub records of a repository: the commit of a revision, and the files of a commit."""

import re
from collections.abc import Mapping

from huggingface_hub.hf_api import RepoFile

from nanochat.errors import FormatError, ModelNotFoundError
from nanochat.zoo.candidates import Request, require_inside
from nanochat.zoo.client import client, hub_errors

__all__ = ["COMMIT", "commit_there", "files_there", "require_record"]

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def commit_there(request: Request) -> str:
    """The commit that a revision stands for now, as the client tells it, with its own exceptions."""
    if COMMIT.fullmatch(request.revision):
        return request.revision
    info = client(request.token).repo_info(request.repo, revision=request.revision or None)
    # It becomes the name of a folder.
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise ModelNotFoundError(
            f"the Hub names no commit of {request.repo}: check HF_ENDPOINT, and try again"
        )
    return info.sha


def files_there(request: Request, commit: str) -> dict[str, RepoFile]:
    """Every file of a commit, as the Hub records it."""
    with hub_errors(request.repo, revision=request.revision):
        tree = client(request.token).list_repo_tree(request.repo, revision=commit, recursive=True)
        return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def require_record(files: Mapping[str, RepoFile], *, where: str) -> None:
    """Refuse a listing whose names or hashes are none: both become names of files on this disk."""
    require_inside(files, where=where)
    for name, file in files.items():
        if not COMMIT.fullmatch(file.blob_id) or not (
            file.lfs is None or _SHA256.fullmatch(file.lfs.sha256)
        ):
            raise FormatError(
                f"{where} lists {name!r:.80} with a hash that is none: do not use this repository"
            )
