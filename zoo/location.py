"""This file holds what is asked of the Hub, and where a model is when it has been found."""

from dataclasses import dataclass, field
from pathlib import Path

from nanochat.export.formats import Candidate

__all__ = ["Fetched", "Location", "Request"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is wanted of the Hub.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    revision : str
        Branch, tag or commit; empty is the main branch.
    part, backend : str
        See `nanochat.zoo.layout.choose`.
    token : str or None
        Access token; `None` is the one of ``hf auth login`` or ``HF_TOKEN``.
    cache_dir : str, Path or None
        Where downloads stay; `None` is the client's own cache.
    local_files_only, force_download : bool
        Use what was fetched before, without the network; fetch again what was fetched before.
    """

    repo: str
    revision: str = ""
    part: str = ""
    backend: str = "auto"
    token: str | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    force_download: bool = False


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A model of the Hub on this disk.

    Parameters
    ----------
    repo : str
        ``owner/name``.
    path : Path
        The file or folder to open.
    snapshot : Path
        The folder of its repository at this commit.
    commit : str
        40 hexadecimal digits.
    model : Candidate
        What was chosen.
    bytes : int
        Size of its files.
    """

    repo: str
    path: Path
    snapshot: Path
    commit: str
    model: Candidate
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a model is.

    Parameters
    ----------
    path : Path
        The directory, ``.gguf`` or ``.onnx`` file to open.
    name : str
        What the model is called: its name in the catalog or on the Hub, or that of its file or directory.
    fetched : Fetched or None
        What was fetched, if it is of the Hub.
    """

    path: Path
    name: str
    fetched: Fetched | None = None

    @property
    def origin(self) -> str:
        """Where its files come from, in a word or two."""
        if self.fetched is None:
            return str(self.path)
        return f"{self.fetched.repo}@{self.fetched.commit[:12]}"
