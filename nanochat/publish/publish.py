"""This file holds the publication of a model on the Hugging Face Hub: checked, staged, measured, and then uploaded.

Everything that can fail here happens before the first byte leaves: hashes and golden record are verified, formats are
exported and run, the lines of the card are executed. What is uploaded is one commit for each repository.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import NanochatError, SaveError
from nanochat.export.source import Source
from nanochat.publish.card import describe, require_updatable
from nanochat.publish.options import Options, destinations, require_publishable
from nanochat.publish.replaced import require_unmixed, stale_files
from nanochat.publish.repository import Repository, stage_repositories
from nanochat.publish.staging import open_original
from nanochat.publish.upload import Destination, Present, read_present, require_login, upload

__all__ = ["Published", "publish", "require_ready"]

_CARD = "README.md"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was done with a repository, or would be.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    files : mapping
        Sizes of the files that were staged for it by name, in bytes.
    deleted : sequence of str
        Files of an earlier push that go.
    card : str
        Content of its ``README.md``.
    commit_url, pull_request_url : str
        Addresses; empty if there is none.
    """

    repo: str
    files: Mapping[str, int]
    deleted: Sequence[str]
    card: str
    commit_url: str = ""
    pull_request_url: str = ""


def publish(
    model: Path | Source,
    repo: str,
    options: Options | None = None,
    *,
    dry_run: bool = False,
    report: Callable[[str], None] | None = None,
) -> list[Published]:
    """Upload a model, with a card and in further formats if they are asked for, or nothing.

    Parameters
    ----------
    model : Path or Source
        A model directory, an exported folder, a ``.gguf`` or ``.onnx`` file; or a model in memory.
    repo : str
        ``owner/name``; made if it is not there.
    options : Options, optional
        How; absent is the defaults.
    dry_run : bool
        Do everything but the upload; the Hub is only read.
    report : callable, optional
        Called with what is done next, in words.

    Returns
    -------
    list of Published
        For `repo`, and then for those of the formats if they are separate.

    Raises
    ------
    InputError
        If the licence is unknown, or another than the card's or the files'; if an option is none.
    FormatError
        If there are no hashes, or no golden record, or a file or backend does not agree with them; if the card at the
        Hub cannot be updated; or if the lines that it would show do not run.
    ConfigError
        If a format cannot hold the model.
    ModelNotFoundError
        If there is no model.
    SaveError
        If there is no space for staging; or if the Hub refuses.
    """
    options = options or Options()
    report = report or _LOGGER.debug
    places = destinations(repo, options)
    licence = require_publishable(model, options)
    if not dry_run:
        require_login(places[0])
    present = {place.repo: _present(place, dry_run=dry_run) for place in places}
    original = model if isinstance(model, Source) else open_original(model)
    for place in places:
        own = b"" if place is not places[0] else original.card
        require_updatable(place.repo, options, present[place.repo], licence=licence, card=own)
    with _staging() as area:
        staged = stage_repositories(original, places, area, options, licence=licence, report=report)
        plans = [_plan(repository, present[repository.destination.repo]) for repository in staged]
        for number, (repository, plan) in enumerate(zip(staged, plans, strict=True)):
            report(f"measuring {plan.repo}, and running the lines of its card")
            own = b"" if repository.base else original.card
            here = present[plan.repo]
            card = describe(repository, options, here, licence=licence, card=own)
            # A new file: the old one may be the user's own, by a link.
            (repository.folder / _CARD).unlink(missing_ok=True)
            (repository.folder / _CARD).write_bytes(card.encode())
            files = {**plan.files, _CARD: len(card.encode())}
            plans[number] = dataclasses.replace(plan, card=card, files=files)
        if dry_run:
            return plans
        done: list[Published] = []
        for repository, plan in zip(staged, plans, strict=True):
            report(f"uploading to {plan.repo}")
            done.append(_upload(repository, plan, present[plan.repo], done))
        return done


def require_ready(repo: str, options: Options, *, licence: str) -> None:
    """Refuse what `publish` would, of what is known before there is a model to publish.

    Raises
    ------
    InputError, FormatError, SaveError
        As for `publish`.
    """
    for place in destinations(repo, options):
        require_login(place)
        present = read_present(place)
        require_updatable(place.repo, options, present, licence=licence, card=b"")


def _present(destination: Destination, *, dry_run: bool) -> Present:
    try:
        return read_present(destination)
    except SaveError as error:
        if not dry_run:
            raise
        _LOGGER.warning("%s; what is shown is what a new repository would get", error)
        return Present()


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


def _plan(repository: Repository, present: Present) -> Published:
    """What goes and what comes, without the card."""
    repo, folder = repository.destination.repo, repository.folder
    staged = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {_CARD: 0, **{p.relative_to(folder).as_posix(): p.stat().st_size for p in staged}}
    deleted = stale_files(present, files)
    require_unmixed(repo, present, files, deleted)
    return Published(repo=repo, files=files, deleted=deleted, card="")


def _upload(
    repository: Repository, plan: Published, present: Present, done: Sequence[Published]
) -> Published:
    try:
        uploaded = upload(
            repository.folder, repository.destination, present=present, delete=plan.deleted
        )
    except SaveError as error:
        if not done:
            raise
        raise SaveError(
            f"{error}; uploaded before that: {', '.join(d.repo for d in done)}"
        ) from error
    return dataclasses.replace(
        plan, commit_url=uploaded.commit_url, pull_request_url=uploaded.pull_request_url
    )
