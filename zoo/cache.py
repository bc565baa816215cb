"""This file holds what was fetched from the Hub before: the models in the client's cache, and their removal."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CachedRepoInfo, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from nanochat.errors import ModelNotFoundError
from nanochat.zoo.layout import candidates

__all__ = ["Cached", "cached", "remove"]


@dataclass(frozen=True, kw_only=True)
class Cached:
    """A repository of the Hub of which at least one model is here.

    Parameters
    ----------
    repo : str
        ``owner/name``.
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
    """The models that are here, by name.

    Parameters
    ----------
    cache_dir : str or Path, optional
        Where downloads stay; absent is the client's own cache.
    """
    try:
        repos = scan_cache_dir(cache_dir).repos
    except CacheNotFound:
        return []
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
    cache_dir : str or Path, optional
        Where downloads stay; absent is the client's own cache.

    Raises
    ------
    ModelNotFoundError
        If nothing of it is here.
    """
    here = next((model for model in cached(cache_dir) if model.repo == repo), None)
    commits = [] if here is None else list(_commits(here, revision))
    if not commits:
        name = f"{repo}@{revision}" if revision else repo
        raise ModelNotFoundError(
            f"nothing of {name} was fetched: `nanochat models list` shows what was"
        )
    strategy = scan_cache_dir(cache_dir).delete_revisions(*commits)
    strategy.execute()
    return strategy.expected_freed_size


def _commits(here: Cached, revision: str) -> Iterable[str]:
    for commit, names in here.revisions.items():
        shortened = len(revision) >= 7 and commit.startswith(revision)
        if not revision or revision in names or shortened:
            yield commit
