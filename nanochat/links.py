"""This file holds which links of a model's directory are followed: those that lead to files of its own."""

import os
from pathlib import Path

__all__ = ["own_file"]


def own_file(folder: Path, name: str) -> Path | None:
    """The file that a name in a folder stands for; `None` if a link takes it from elsewhere.

    The snapshots of the Hub's cache consist of links to the store beside them, which is not elsewhere.
    """
    path = folder / name
    file, root = path.resolve(), folder.resolve()
    return file if file.is_relative_to(root) or _is_cached(path, file, root) else None


def _is_cached(path: Path, file: Path, root: Path) -> bool:
    """Whether a file of a snapshot in the Hub's cache is a link to the store beside it, as the client makes them."""
    for snapshot in (root, *root.parents):
        repository = snapshot.parent.parent
        if snapshot.parent.name == "snapshots" and repository.name.startswith("models--"):
            break
    else:
        return False
    if not path.is_symlink():
        return False
    first = Path(os.path.normpath(path.parent.resolve() / path.readlink()))
    # What is there may lead on, to what repositories share.
    stores = (repository / "blobs", repository.parent / "blobs")
    return first.is_relative_to(stores[0]) and any(file.is_relative_to(s) for s in stores)
