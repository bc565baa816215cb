"""This file holds the way from a model's name to its files: what is on disk, the catalog, the Hugging Face Hub."""

import logging
import re
from pathlib import Path

import huggingface_hub

from nanochat import __version__
from nanochat.errors import ModelNotFoundError, SaveError
from nanochat.zoo.catalog import CATALOG, directory, similar, ways_on

__all__ = ["FILES", "is_repo", "resolve"]

# What a model directory holds; nothing else is fetched, so nothing else can be run or read by accident.
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "nanochat.json",
    "README.md",
)

# Models that are one file.
_SUFFIXES = (".gguf", ".onnx")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOGGER = logging.getLogger(__name__)


def resolve(
    name: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Return the directory, ``.gguf`` or ``.onnx`` file that a name stands for, fetched if need be.

    Parameters
    ----------
    name : str
        In this order: the path of a directory, ``.gguf`` or ``.onnx`` file that exists, a name of the catalog, or
        ``owner/name`` on the Hugging Face Hub, perhaps with ``@revision``.
    revision : str, optional
        Branch, tag or commit on the Hub; absent is the main branch. Nothing but a model of the Hub has one.
    token : str, optional
        Access token; absent is the one of ``hf auth login`` or ``HF_TOKEN``.
    cache_dir : str or Path, optional
        Where downloads stay; absent is the Hub's own cache.
    local_files_only : bool
        Use what was fetched before, without the network.
    force_download : bool
        Fetch again what was fetched before.

    Raises
    ------
    ModelNotFoundError
        If nothing has that name or revision, or it cannot be reached.
    SaveError
        If what was fetched cannot be stored.
    """
    path = _on_disk(name)
    if path is not None:
        if name in CATALOG:
            _LOGGER.warning("%s is a directory here, and comes before the model of that name", name)
        if revision:
            raise _without_revisions(name, revision, f"it is at {path}")
        _LOGGER.debug("%s is at %s", name, path)
        return path
    repo, _, suffix = name.partition("@")
    entry = CATALOG.get(repo)
    if entry is not None and entry.repo is None:
        path = directory(entry)
        if suffix or revision:
            raise _without_revisions(repo, suffix or revision, "it is part of this package")
        return path
    if entry is not None and entry.repo is not None:
        repo = entry.repo
    if not is_repo(repo):
        if suffix and _on_disk(repo) is not None:
            raise _without_revisions(repo, suffix, "it is on this disk")
        raise _unknown(name)
    if suffix and revision and suffix != revision:
        raise ModelNotFoundError(
            f"{name} and revision={revision!r} name two revisions: pass one of them"
        )
    return _fetch(
        repo,
        revision=suffix or revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )


def is_repo(name: str) -> bool:
    """Whether a name has the form ``owner/name`` of a repository of the Hub."""
    # The Hub's own client refuses the rest.
    odd = "--" in name or ".." in name or name.endswith(("-", ".", ".git")) or len(name) > 96
    return _REPO.fullmatch(name) is not None and not odd


def _on_disk(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        # An empty name would be the current directory.
        if (name and path.is_dir()) or (path.suffix in _SUFFIXES and path.is_file()):
            return path
    except (OSError, ValueError, RuntimeError):
        # No file can have such a name: too long, with a null character, of an unknown user.
        return None
    return None


def _without_revisions(name: str, revision: str | None, where: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{name:.200} has no revision {revision!r:.80}: {where}, and only models of the Hugging Face Hub have "
        "revisions; leave it out"
    )


def _unknown(name: str) -> ModelNotFoundError:
    if name.startswith(("/", ".", "~")) or name.endswith(_SUFFIXES):
        return ModelNotFoundError(
            f"{name:.200}: no such directory, .gguf or .onnx file; pass the path of a model"
        )
    close = similar(name)
    if close:
        return ModelNotFoundError(
            f"no model is named {name!r:.200}: did you mean {' or '.join(close)}?"
        )
    return ModelNotFoundError(
        f"no model is named {name!r:.200}: choose one of {', '.join(CATALOG)}, or {ways_on('NAME')}"
    )


def _fetch(
    repo: str,
    *,
    revision: str | None,
    token: str | None,
    cache_dir: str | Path | None,
    local_files_only: bool,
    force_download: bool,
) -> Path:
    url = f"https://huggingface.co/{repo}"
    # Names of the client are looked up when they are needed: it loads its parts on demand, and they take 0.3 s.
    try:
        snapshot = huggingface_hub.snapshot_download(
            repo,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=list(FILES),
            library_name="nanochat-ternary",
            library_version=__version__,
        )
    except huggingface_hub.errors.GatedRepoError as error:
        raise ModelNotFoundError(
            f"{repo} asks you to accept its terms: do so at {url}, then run `hf auth login`"
        ) from error
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{repo} is no directory here and no model at {url}: check the name, or run `hf auth login` if it is "
            "private"
        ) from error
    except huggingface_hub.errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(
            f"{repo} has no revision {revision!r:.80}: choose a branch, tag or commit at {url}/tree/main"
        ) from error
    except huggingface_hub.errors.LocalEntryNotFoundError as error:
        raise ModelNotFoundError(
            f"{repo} is no directory here, was not fetched before, and the Hub is out of reach: "
            "connect and try again, or pass the path of a model"
        ) from error
    except huggingface_hub.errors.HFValidationError as error:
        raise ModelNotFoundError(f"{repo}: {error}; pass owner/name") from error
    # The client's own exceptions are another library's in every major version.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise SaveError(
                f"cannot store {repo}: {error.strerror}; free space, or pass another cache_dir"
            ) from error
        raise ModelNotFoundError(f"{repo} could not be fetched: {error}; try again") from error
    path = Path(snapshot)
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(
            f"{repo} holds no config.json, so it is no model of nanochat-ternary: check the name"
        )
    return path
