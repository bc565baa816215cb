"""This file holds what a push does to files of earlier ones: what their ``nanochat.json`` names goes, no more."""

import json
import logging
import re
from collections.abc import Collection
from pathlib import PurePosixPath

from nanochat.errors import InputError
from nanochat.proof.manifest import NAME
from nanochat.publish.upload import Present

__all__ = ["require_unmixed", "stale_files"]

# What is opened by its name alone, so that a second one would be taken for a part of the first.
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_LOGGER = logging.getLogger(__name__)


def stale_files(present: Present, staged: Collection[str]) -> list[str]:
    """Files that belonged to a model of which the ``nanochat.json`` is replaced, and not to the new one.

    Parameters
    ----------
    staged : collection of str
        Files that are uploaded.
    """
    stale: set[str] = set()
    for place, content in present.manifests.items():
        if place in staged:
            stale.update(_listed(place, content))
    # Names are those of files there, exactly, whatever else a manifest may say.
    deleted = (stale & set(present.files)) - set(staged)
    stay = {n for n in present.files if n in present.manifests or n.endswith(".gguf")}
    for name in sorted(stay - set(staged) - deleted):
        what = PurePosixPath(name).parent if name in present.manifests else name
        _LOGGER.warning(
            "%s of the repository is of an earlier push, and stays: push that format, too, or delete it",
            what,
        )
    return sorted(deleted)


def require_unmixed(
    repo: str, present: Present, staged: Collection[str], deleted: Collection[str]
) -> None:
    """Refuse to put weights beside others that would be read with them.

    Raises
    ------
    InputError
        With the first of the others.
    """
    folders = {PurePosixPath(n).parent for n in staged if _is_weights(n)}
    for name in sorted(set(present.files) - set(staged) - set(deleted)):
        if _is_weights(name) and PurePosixPath(name).parent in folders:
            raise InputError(
                f"{repo} holds {name}, which no {NAME} there names, and which would be read as a part of the new "
                f"model: delete it (`hf repos delete-files {repo} {name}`), or choose another repository or branch"
            )


def _is_weights(name: str) -> bool:
    return _WEIGHTS.fullmatch(PurePosixPath(name).name) is not None


def _listed(place: str, content: bytes) -> set[str]:
    """The files that a ``nanochat.json`` of the repository names, by their paths in it."""
    try:
        files = json.loads(content)["files"]
        names = [PurePosixPath(place).parent / str(name) for name in files]
    except (ValueError, KeyError, TypeError, RecursionError):
        _LOGGER.warning("%s of the repository is damaged: what it named is not deleted", place)
        return set()
    return {name.as_posix() for name in names}
