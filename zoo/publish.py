"""This file holds the way of a model's files to the Hugging Face Hub."""

import glob
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub

from nanochat import __version__
from nanochat.errors import InputError, SaveError
from nanochat.zoo.hub import is_repo

__all__ = ["require_repo", "upload"]


def require_repo(repo: str) -> None:
    """Refuse what cannot be a repository's name; better before a model is exported than after.

    Raises
    ------
    InputError
        If the Hub has no such names.
    """
    if not is_repo(repo):
        raise InputError(f"{repo!r:.200} is no repository of the Hub: pass OWNER/NAME")


def upload(
    path: Path,
    repo: str,
    *,
    beside: Sequence[str] = (),
    token: str | None = None,
    message: str | None = None,
) -> str:
    """Upload a folder, or a file and its parity report, in one commit; the repository is made if it is not there.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    beside : sequence of str
        Names of further files that lie beside a file.
    token : str, optional
        Access token; absent is the one of ``hf auth login`` or ``HF_TOKEN``.
    message : str, optional
        Subject of the commit.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    InputError
        If `repo` is no name of a repository.
    SaveError
        If the Hub cannot be reached, or refuses.
    """
    require_repo(repo)
    api = huggingface_hub.HfApi(
        token=token, library_name="nanochat-ternary", library_version=__version__
    )
    message = message or f"Upload {path.name} with nanochat-ternary {__version__}"
    folder = path if path.is_dir() else path.parent
    # The client takes names for patterns.
    names = [glob.escape(name) for name in (path.name, f"{path.name}.parity.json", *beside)]
    try:
        api.create_repo(repo, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=None if path.is_dir() else names,
            commit_message=message,
        )
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise SaveError(
            f"{repo} is not there or not yours: run `hf auth login` with a token that may write ({error})"
        ) from error
    except (huggingface_hub.errors.HfHubHTTPError, OSError) as error:
        raise SaveError(
            f"cannot upload {path} to {repo} ({error}): the export itself is complete; run `hf auth login` with a "
            f"token that may write, and then `hf upload {repo} {path}`"
        ) from error
    return str(commit.commit_url)
