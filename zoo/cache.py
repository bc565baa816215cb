"""This file holds what was fetched from the Hub before: the models in the client's cache, and their removal."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CachedRepoInfo, HFCacheInfo, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from nanochat.errors import ModelNotFoundError, SaveError
from nanochat.export.formats import candidates

__all__ = ["Cached", "cached", "remove", "storage"]


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A repository of the Hub of which at least one model is here.

    Parameters
    ----------
    revisions : dict of str to tuple of str
        For each commit that is here, the branches and tags that stand for it.
    paths : dict of str to Path
        What could be opened, the latest of each, by its place in the repository.
    bytes : int
        What all of it takes on the disk.
    """

    repo: str
    revisions: dict[str, tuple[str, ...]]
    paths: dict[str, Path]
    bytes: int


def cached(cache_dir: str | Path | None = None) -> list[Cached]:
    """The models in a folder of downloads, or in the client's own cache, by name."""
    cache = _scan(cache_dir)
    repos = () if cache is None else cache.repos
    found = (_models_of(repo) for repo in repos if repo.repo_type == "model")
    return sorted((model for model in found if model is not None), key=lambda model: model.repo)


def _models_of(repo: CachedRepoInfo) -> Cached | None:
    """What is here of a repository, or nothing that could be opened."""
    revisions = sorted(repo.revisions, key=lambda revision: revision.last_modified)
    paths = {
        model.place or model.kind: revision.snapshot_path / model.place
        for revision in revisions
        for model in candidates(
            file.file_path.relative_to(revision.snapshot_path).as_posix() for file in revision.files
        )
    }
    if not paths:
        return None
    return Cached(
        repo=repo.repo_id,
        revisions={r.commit_hash: tuple(sorted(r.refs)) for r in revisions},
        paths=paths,
        bytes=repo.size_on_disk,
    )


def remove(repo: str, *, revision: str = "", cache_dir: str | Path | None = None) -> int:
    """Delete what is here of a repository, and return how many bytes that gives back.

    Parameters
    ----------
    revision : str
        Branch, tag or commit, perhaps shortened; empty is all that is here.
    """
    cache = _scan(cache_dir)
    commits = [
        one.commit_hash
        for here in (cache.repos if cache is not None else ())
        for one in (here.revisions if (here.repo_type, here.repo_id) == ("model", repo) else ())
        if not revision
        or revision in one.refs
        or (len(revision) >= 7 and one.commit_hash.startswith(revision))
    ]
    place = storage(repo, cache_dir)
    if not commits and (revision or not place.is_dir()):
        name = f"{repo}@{revision}" if revision else repo
        raise ModelNotFoundError(
            f"nothing of {name} was fetched: `nanochat models list` shows what was"
        )
    freed = 0
    try:
        if cache is not None and commits:
            strategy = cache.delete_revisions(*commits)
            strategy.execute()
            freed += strategy.expected_freed_size
        # What is incomplete, and knows no commit, goes with all the rest.
        if not revision and place.is_dir():
            folder = place.resolve()
            files = (p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
            freed += sum(path.stat().st_size for path in files)
            shutil.rmtree(folder)
        if not revision and place.is_symlink():
            place.unlink()
    except OSError as error:
        raise SaveError(
            f"cannot delete {error.filename or place}: {error.strerror}; make {place.parent} writable"
        ) from error
    return freed


def _scan(cache_dir: str | Path | None) -> HFCacheInfo | None:
    """What the client finds in its cache; `None` if there is none."""
    try:
        return scan_cache_dir(cache_dir)
    except CacheNotFound:
        return None
    except ValueError as error:
        raise SaveError(
            f"{cache_dir or constants.HF_HUB_CACHE} is no folder: set HF_HUB_CACHE or cache_dir to one"
        ) from error


def storage(repo: str, cache_dir: str | Path | None) -> Path:
    """Where the client keeps what it fetches of a repository."""
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()
    return cache / f"models--{repo.replace('/', '--')}"
