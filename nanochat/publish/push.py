"""This file holds the publication of a model on the Hugging Face Hub: checked, staged, measured, and then uploaded.

Everything that can fail here happens before the first byte leaves: hashes and golden record are verified, formats are
exported and run, the lines of the card are executed. What is uploaded is one commit for each repository.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.bundle import CARD, Bundle
from nanochat.errors import InputError, NanochatError, SaveError
from nanochat.export.directory import save_model
from nanochat.publish.card import describe, require_updatable
from nanochat.publish.options import PushOptions
from nanochat.publish.stage import (
    Repository,
    open_original,
    require_publishable,
    stage_repositories,
)
from nanochat.publish.upload import Present, read_present, require_login, stale_files, upload
from nanochat.zoo.hub import is_repo

__all__ = ["Published", "push_model", "repositories", "require_ready"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was done with a repository, or would be.

    `files` are the sizes in bytes of what was staged for it, `deleted` those of an earlier push that go, `card` is the
    content of its ``README.md``. An address is empty if there is none.
    """

    repo: str
    files: Mapping[str, int]
    deleted: Sequence[str]
    card: str
    commit_url: str = ""
    pull_request_url: str = ""


def push_model(
    model: Path | Bundle,
    repo: str,
    options: PushOptions | None = None,
    *,
    dry_run: bool = False,
    report: Callable[[str], None] | None = None,
) -> list[Published]:
    """Upload a model, with a card and in further formats if they are asked for, or nothing.

    Parameters
    ----------
    model : Path or Bundle
        A model directory, an exported folder, a ``.gguf`` or ``.onnx`` file; or a model in memory.
    repo : str
        ``owner/name``; made if it is not there.
    dry_run : bool
        Do everything but the upload; the Hub is only read.
    report : callable, optional
        Called with what is done next, in words.

    Returns
    -------
    list of Published
        For `repo`, and then for those of the formats if they are separate.
    """
    options = options or PushOptions()
    report = report or _LOGGER.debug
    original = model if isinstance(model, Bundle) else open_original(model)
    licence = require_publishable(original, options)
    present = require_ready(repo, options, licence=licence, card=original.card, dry_run=dry_run)
    with _staging() as area:
        if isinstance(original, Bundle):
            save_model(area / "memory", original)
            original = open_original(area / "memory")
        repos = list(present)
        staged = stage_repositories(original, repos, area, options, licence=licence, report=report)
        plans = []
        for repository in staged:
            report(f"measuring {repository.repo}, and running the lines of its card")
            here = present[repository.repo]
            plans.append(_with_card(repository, options, here, licence=licence))
        if dry_run:
            return plans
        done: list[Published] = []
        for repository, plan in zip(staged, plans, strict=True):
            report(f"uploading to {plan.repo}")
            commit = upload(
                repository.folder,
                plan.repo,
                options,
                present=present[plan.repo],
                delete=plan.deleted,
                after=[one.repo for one in done],
            )
            commit_url, pull_request_url = str(commit.commit_url), str(commit.pr_url or "")
            done.append(replace(plan, commit_url=commit_url, pull_request_url=pull_request_url))
        return done


def repositories(repo: str, options: PushOptions) -> list[str]:
    """Where a publication goes: the model's own repository first, then those of its formats."""
    repos = [repo, *(f"{repo}-{kind}" for kind in options.formats if options.separate)]
    for name in repos:
        if not is_repo(name):
            raise InputError(f"{name!r:.200} is no repository of the Hub: pass OWNER/NAME")
    return repos


def require_ready(
    repo: str, options: PushOptions, *, licence: str, card: bytes = b"", dry_run: bool = False
) -> dict[str, Present]:
    """What is in each repository now, if a publication could go there: known before there is a model to publish."""
    repos = repositories(repo, options)
    if not dry_run:
        require_login(repo, options)
    present = {}
    for name in repos:
        try:
            present[name] = read_present(name, options)
        except SaveError as error:
            if not dry_run:
                raise
            _LOGGER.warning("%s; what is shown is what a new repository would get", error)
            present[name] = Present()
        own = card if name == repo else b""
        require_updatable(name, options, present[name], licence=licence, card=own)
    return present


@contextmanager
def _staging() -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(prefix="nanochat-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except NanochatError:
        raise
    except OSError as error:
        raise SaveError(
            f"cannot stage the upload in {tempfile.gettempdir()}: {error.strerror or error}; free space, or set TMPDIR "
            "to a folder that has more"
        ) from error


def _with_card(
    repository: Repository, options: PushOptions, present: Present, *, licence: str
) -> Published:
    """Put the card beside the other files, and say what goes and what comes."""
    repo, folder = repository.repo, repository.folder
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {CARD: 0, **{p.relative_to(folder).as_posix(): p.stat().st_size for p in paths}}
    deleted = stale_files(repo, present, files)
    text = describe(repository, options, present, licence=licence)
    # A new file: the old one may be the user's own, by a link.
    (folder / CARD).unlink(missing_ok=True)
    (folder / CARD).write_bytes(text.encode())
    files[CARD] = len(text.encode())
    return Published(repo=repo, files=files, deleted=deleted, card=text)
