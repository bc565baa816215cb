"""This file holds the way of a staged folder to a repository of the Hugging Face Hub: one commit, or nothing.

The caller stages everything first; `read_present` says what is there, so that nothing of it is lost unseen, and
`upload` refuses if the repository changed since.
"""

import contextlib
import glob
import json
import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from huggingface_hub import CommitInfo, errors

from nanochat import __version__
from nanochat.bundle import CARD
from nanochat.errors import InputError, SaveError
from nanochat.files import read_bytes
from nanochat.proof.manifest import NAME
from nanochat.publish.options import PushOptions
from nanochat.tensors import is_weights
from nanochat.zoo.client import LOGIN, client, hub_errors

__all__ = ["Present", "read_present", "require_login", "stale_files", "upload"]

_MAIN = "main"
_MAX_BYTES = 64 * 2**20
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Present:
    """What a repository holds before an upload, read at one commit, which is empty if there is no repository yet.

    `has_branch` is whether the branch that was asked for is there, `manifests` the content of each ``nanochat.json``.
    """

    commit: str = ""
    has_branch: bool = False
    files: Collection[str] = frozenset()
    card: bytes = b""
    manifests: Mapping[str, bytes] = field(default_factory=dict)


def require_login(repo: str, options: PushOptions) -> None:
    """Refuse a token that cannot write, before any work is done for it."""
    with _errors(repo, options, "ask whose token is used for"):
        said = client(options.token).whoami()
    role = ((said.get("auth") or {}).get("accessToken") or {}).get("role")
    # A token with permissions of its own is only known to fail when it does.
    if role == "read" and not options.create_pr:
        raise SaveError(
            f"cannot upload to {repo}: the token of {said.get('name')} may only read; {LOGIN}"
        )


def read_present(repo: str, options: PushOptions) -> Present:
    """What is in the repository now; an empty one if it is not there, or not to be seen."""
    api = client(options.token)
    with _errors(repo, options, "read what is in"), tempfile.TemporaryDirectory() as folder:
        try:
            main = there = api.model_info(repo)
            # A branch that is not there begins with what main holds.
            with contextlib.suppress(errors.RevisionNotFoundError):
                there = api.model_info(repo, revision=options.branch or _MAIN)
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError as error:
            if options.create_pr:
                raise InputError(
                    f"there is no {repo} to open a pull request in, or it is private and not yours: check the name, or "
                    "leave create_pr out to make it"
                ) from error
            return Present()
        if options.private is not None and main.private is not options.private:
            _LOGGER.warning(
                "%s is there and stays %s: change that in its settings at the Hub",
                repo,
                "private" if main.private else "public",
            )

        def content(name: str) -> bytes:
            place = api.hf_hub_download(repo, name, revision=there.sha, local_dir=folder)
            return read_bytes(Path(place), limit=_MAX_BYTES)

        files = frozenset(sibling.rfilename for sibling in there.siblings or ())
        manifests = sorted(name for name in files if PurePosixPath(name).name == NAME)
        return Present(
            commit=there.sha or "",
            has_branch=there is not main,
            files=files,
            card=content(CARD) if CARD in files else b"",
            manifests={name: content(name) for name in manifests},
        )


def stale_files(repo: str, present: Present, staged: Collection[str]) -> list[str]:
    """Files that a ``nanochat.json`` names which is replaced, and that are not staged anew; all others stay.

    What stays is refused if it would be read as a part of the new model, and told of if it is another format's.
    """
    named: set[str] = set()
    for place, content in present.manifests.items():
        if place in staged:
            named |= _named(place, content)
    # Names are those of files there, exactly, whatever else a manifest may say.
    stale = (named & set(present.files)) - set(staged)
    # Weights are opened by their names alone.
    folders = {path.parent for path in map(PurePosixPath, staged) if is_weights(path.name)}
    for name in sorted(set(present.files) - set(staged) - stale):
        path = PurePosixPath(name)
        if is_weights(path.name) and path.parent in folders:
            raise InputError(
                f"{repo} holds {name}, which no {NAME} there names, and which would be read as a part of the new "
                f"model: delete it (`hf repos delete-files {repo} {name}`), or choose another repository or branch"
            )
        if name in present.manifests or name.endswith(".gguf"):
            _LOGGER.warning(
                "%s of the repository is of an earlier push, and stays: push that format, too, or delete it",
                path.parent if name in present.manifests else name,
            )
    return sorted(stale)


def upload(
    folder: Path,
    repo: str,
    options: PushOptions,
    *,
    present: Present,
    delete: Collection[str] = (),
    after: Sequence[str] = (),
) -> CommitInfo:
    """Upload all files of a folder, and delete others, in one commit on what was `present` when they were staged.

    `after` are the repositories that were uploaded before, of which an error tells. The client makes several commits of
    more than 250 files, or of more than 100 MB that are no large files.
    """
    api, branch = client(options.token), options.branch
    so_far = f"; uploaded before that: {', '.join(after)}" if after else ""
    if not present.commit:
        with _errors(repo, options, "make", so_far):
            api.create_repo(repo, private=options.private)
        so_far = f"; {repo} was made, and is empty{so_far}"
    if branch and not present.has_branch:
        with _errors(repo, options, f"make the branch {branch!r:.80} of", so_far):
            # Made by somebody else meanwhile, it is refused if it is not at the commit that was read.
            api.create_branch(repo, branch=branch, revision=present.commit or None, exist_ok=True)
    with _errors(repo, options, "upload to", so_far):
        return api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=options.message or f"Upload with nanochat-ternary {__version__}",
            revision=branch or None,
            create_pr=options.create_pr,
            parent_commit=present.commit or None,
            # The client takes names for patterns.
            delete_patterns=[glob.escape(name) for name in sorted(delete)] or None,
        )


def _errors(
    repo: str, options: PushOptions, doing: str, then: str = ""
) -> contextlib.AbstractContextManager[None]:
    branch = options.branch or _MAIN
    return hub_errors(repo, writing=doing, revision=branch, token=options.token, then=then)


def _named(place: str, content: bytes) -> set[str]:
    """The files that a ``nanochat.json`` of the repository names, by their paths in it."""
    try:
        files = json.loads(content)["files"]
        names = [PurePosixPath(place).parent / str(name) for name in files]
    except (ValueError, KeyError, TypeError, RecursionError):
        _LOGGER.warning("%s of the repository is damaged: what it named is not deleted", place)
        return set()
    return {name.as_posix() for name in names}
