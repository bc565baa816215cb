"""This file holds what was fetched from the Hub before: the models in the client's cache, and their removal."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CachedRepoInfo, constants, scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from nanochat.errors import ModelNotFoundError
from nanochat.zoo.layout import candidates
from nanochat.zoo.resume import SUFFIX

__all__ = ["Cached", "cached", "remove", "storage"]


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
    freed = 0 if revision else _remove_partial(repo, cache_dir)
    here = next((model for model in cached(cache_dir) if model.repo == repo), None)
    commits = [] if here is None else list(_commits(here, revision))
    if commits:
        strategy = scan_cache_dir(cache_dir).delete_revisions(*commits)
        strategy.execute()
        freed += strategy.expected_freed_size
    elif not freed:
        name = f"{repo}@{revision}" if revision else repo
        raise ModelNotFoundError(
            f"nothing of {name} was fetched: `nanochat models list` shows what was"
        )
    return freed


def _remove_partial(repo: str, cache_dir: str | Path | None) -> int:
    """Delete what came before downloads were cut, and return its bytes."""
    freed = 0
    for path in (storage(repo, cache_dir) / "blobs").glob(f"*{SUFFIX}"):
        freed += path.stat().st_size
        path.unlink(missing_ok=True)
    return freed


def storage(repo: str, cache_dir: str | Path | None) -> Path:
    """Where the client keeps what it fetches of a repository."""
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()
    return cache / f"models--{repo.replace('/', '--')}"


def _commits(here: Cached, revision: str) -> Iterable[str]:
    for commit, names in here.revisions.items():
        shortened = len(revision) >= 7 and commit.startswith(revision)
        if not revision or revision in names or shortened:
            yield commit
