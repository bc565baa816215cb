"""This file holds the writing of a model directory: weights, configuration, tokenizer, card, and what proves them."""

from pathlib import Path

from nanochat import checkpoint
from nanochat.errors import ConfigError, FormatError, SaveError
from nanochat.export.source import Source
from nanochat.proof.manifest import read_manifest, write_manifest

__all__ = ["save_model"]

_CARD = "README.md"


def save_model(directory: str | Path, source: Source) -> None:
    """Write a model directory, complete or not at all, with the hashes and the golden record of ``nanochat.json``.

    The record takes the reference a second or two for 100 million parameters.

    Parameters
    ----------
    directory : str or Path
        Made if it is not there; the model that it holds is replaced, of which an earlier card stays if `source` has
        none.
    source : Source
        The model, and what is said of it.

    Raises
    ------
    InputError
        If what is said of it has no JSON form.
    NumericError, ShapeError
        If a leaf is not what the configuration asks for, or holds what no model may.
    SaveError
        If a file cannot be written; the model that was there is untouched.
    """
    directory = Path(directory)
    replaced = _files_of_the_model_in(directory)
    others = dict(source.tokenizer.files())
    if source.card:
        others[_CARD] = source.card
    checkpoint.save(
        directory,
        source.config,
        source.weights,
        generation=source.generation,
        others=others,
        finish=lambda new: write_manifest(new, source, kind="nanochat"),
    )
    for name in replaced - _files_of_the_model_in(directory):
        _delete(directory / name)


def _files_of_the_model_in(directory: Path) -> frozenset[str]:
    """What ``nanochat.json`` says; nothing if it is damaged or not there."""
    try:
        manifest = read_manifest(directory)
    except (ConfigError, FormatError):
        manifest = None
    return frozenset(() if manifest is None else manifest.files)


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SaveError(
            f"cannot delete {path}, of the model that was replaced: {error.strerror}; delete it, or the new model will "
            "not load as it is"
        ) from error
