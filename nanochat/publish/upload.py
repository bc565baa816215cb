"""This file holds the way of a staged folder to a repository of the Hugging Face Hub: one commit, or nothing.

The caller stages everything first; `read_present` says what is there, so that nothing of it is lost unseen, and
`upload` refuses if the repository changed since.
"""

import glob
import logging
import re
import tempfile
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import errors

from nanochat import __version__
from nanochat.errors import InputError, SaveError
from nanochat.files import read_bytes
from nanochat.zoo.client import LOGIN, client, hub_errors, require_token
from nanochat.zoo.hub import is_repo

__all__ = [
    "Destination",
    "Present",
    "Uploaded",
    "read_present",
    "require_destination",
    "require_login",
    "upload",
]

_CARD, _MANIFEST, _MAIN = "README.md", "nanochat.json", "main"
_MAX_BYTES = 64 * 2**20
# A part of an address, in which two dots or a slash in front would lead elsewhere.
_BRANCH = re.compile(r"(?!.*(\.\.|//))[A-Za-z0-9_]([\w./-]{0,198}[\w-])?", re.ASCII)
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Where a folder goes.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    branch : str
        Made if it is not there; empty is the main branch.
    create_pr : bool
        Whether the commit becomes a pull request to the main branch, which stays as it is.
    private : bool or None
        Of a repository that is made: whether only its owner sees it. `None` is the owner's own default.
    token : str or None
        Access token; `None` is the one of ``hf auth login`` or ``HF_TOKEN``.
    message : str
        Subject of the commit; empty for one that names the version of this package.

    Raises
    ------
    InputError
        If the token is none that a request could carry.
    """

    repo: str
    branch: str = ""
    create_pr: bool = False
    private: bool | None = None
    token: str | None = field(default=None, repr=False)
    message: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", require_token(self.token))


@dataclass(frozen=True, kw_only=True)
class Present:
    """What a repository holds before an upload.

    Parameters
    ----------
    commit : str
        The one that it was read at; empty if there is no repository yet.
    has_branch : bool
        Whether the destination's branch is there.
    files : collection of str
        Paths of its files.
    card : bytes
        Content of its ``README.md``; may be empty.
    manifests : mapping
        Content of each ``nanochat.json``, by its path.
    """

    commit: str = ""
    has_branch: bool = False
    files: Collection[str] = frozenset()
    card: bytes = b""
    manifests: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """Addresses of a commit, and of its pull request, which may be empty."""

    commit_url: str
    pull_request_url: str = ""


def require_destination(destination: Destination) -> None:
    """Refuse what the Hub has no place for; better before a model is exported than after.

    Raises
    ------
    InputError
        With what to pass.
    """
    if not is_repo(destination.repo):
        raise InputError(f"{destination.repo!r:.200} is no repository of the Hub: pass OWNER/NAME")
    if destination.branch and not _BRANCH.fullmatch(destination.branch):
        raise InputError(
            f"branch={destination.branch!r:.80} is no branch: pass letters, digits and any of . _ / - between them"
        )
    if destination.create_pr and destination.branch not in ("", _MAIN):
        raise InputError(
            f"create_pr with branch={destination.branch!r:.80}: the Hub opens pull requests to the main branch; leave "
            "one of them out"
        )


def require_login(destination: Destination) -> None:
    """Refuse a token that cannot write, before any work is done for it.

    Raises
    ------
    SaveError
        If there is none, the Hub does not know it, it may only read, or the Hub cannot be asked.
    """
    with _errors(destination, "ask whose token is used for"):
        said = client(destination.token).whoami()
    role = ((said.get("auth") or {}).get("accessToken") or {}).get("role")
    # A token with permissions of its own is only known to fail when it does.
    if role == "read" and not destination.create_pr:
        raise SaveError(
            f"cannot upload to {destination.repo}: the token of {said.get('name')} may only read; {LOGIN}"
        )


def read_present(destination: Destination) -> Present:
    """What is in the repository now; an empty one if it is not there, or not to be seen.

    Raises
    ------
    InputError
        If a pull request is asked for and there is no repository to open it in.
    SaveError
        If the Hub refuses or cannot be reached.
    """
    api, repo, branch = client(destination.token), destination.repo, destination.branch or _MAIN
    with _errors(destination, "read what is in"), tempfile.TemporaryDirectory() as folder:
        has_branch = True
        try:
            info = api.model_info(repo)
            try:
                info = api.model_info(repo, revision=branch)
            except errors.RevisionNotFoundError:
                has_branch = False
        except errors.GatedRepoError:
            raise
        except errors.RepositoryNotFoundError as error:
            if destination.create_pr:
                raise InputError(
                    f"there is no {repo} to open a pull request in, or it is private and not yours: check the name, or "
                    "leave create_pr out to make it"
                ) from error
            return Present()
        if destination.private is not None and info.private is not destination.private:
            _LOGGER.warning(
                "%s is there and stays %s: change that in its settings at the Hub",
                repo,
                "private" if info.private else "public",
            )
        files = frozenset(sibling.rfilename for sibling in info.siblings or ())

        def content(name: str) -> bytes:
            place = api.hf_hub_download(repo, name, revision=info.sha, local_dir=folder)
            return read_bytes(Path(place), limit=_MAX_BYTES)

        manifests = sorted(f for f in files if f == _MANIFEST or f.endswith(f"/{_MANIFEST}"))
        return Present(
            commit=info.sha or "",
            has_branch=has_branch,
            files=files,
            card=content(_CARD) if _CARD in files else b"",
            manifests={name: content(name) for name in manifests},
        )


def upload(
    folder: Path, destination: Destination, *, present: Present, delete: Collection[str] = ()
) -> Uploaded:
    """Upload all files of a folder, and delete others, in one commit.

    The client makes several commits of more than 250 files, or of more than 100 MB that are no large files.

    Parameters
    ----------
    present : Present
        What the repository was when the folder was staged.
    delete : collection of str
        Files of the repository that must go.

    Raises
    ------
    SaveError
        If the Hub refuses, cannot be reached, or the repository was changed since. No file of it has changed then.
    """
    api, repo = client(destination.token), destination.repo
    made = ""
    if not present.commit:
        with _errors(destination, "make"):
            api.create_repo(repo, private=destination.private)
        made = f"; {repo} was made, and is empty"
    if destination.branch and not present.has_branch:
        with _errors(destination, f"make the branch {destination.branch!r:.80} of", made):
            # Made by somebody else meanwhile, it is refused if it is not at the commit that was read.
            api.create_branch(
                repo, branch=destination.branch, revision=present.commit or None, exist_ok=True
            )
    with _errors(destination, "upload to", made):
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=destination.message or f"Upload with nanochat-ternary {__version__}",
            revision=destination.branch or None,
            create_pr=destination.create_pr,
            parent_commit=present.commit or None,
            # The client takes names for patterns.
            delete_patterns=[glob.escape(name) for name in sorted(delete)] or None,
        )
    return Uploaded(commit_url=str(commit.commit_url), pull_request_url=str(commit.pr_url or ""))


def _errors(destination: Destination, doing: str, then: str = "") -> AbstractContextManager[None]:
    branch = destination.branch or _MAIN
    return hub_errors(
        destination.repo, writing=doing, revision=branch, token=destination.token, then=then
    )
