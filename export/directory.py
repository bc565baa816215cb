"""This file holds the model directory as a whole: weights, configuration, tokenizer, card, and what proves them."""

import logging
from pathlib import Path

from nanochat import checkpoint
from nanochat.bundle import CARD, Bundle, default_generation
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, SaveError
from nanochat.export.format import OWN, ModelFiles, Progress, Written
from nanochat.files import exists, own_file, read_bytes
from nanochat.proof.golden import with_golden
from nanochat.proof.manifest import read_manifest, write_manifest
from nanochat.text.library import load_tokenizer
from nanochat.weights import Stored, Weights, named_leaves

__all__ = ["read_folder", "save_model", "write_own"]

_MAX_CARD_BYTES = 2**20
_LOGGER = logging.getLogger(__name__)


def save_model(directory: str | Path, bundle: Bundle) -> None:
    """Write a model directory, complete or not at all, with the hashes and the golden record of ``nanochat.json``.

    Parameters
    ----------
    directory : str or Path
        Made if it is not there; the model that it holds is replaced, of which an earlier card stays if `bundle` has
        none.
    bundle : Bundle
        The model; its golden record is made if it has none.

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
    proven = bundle if bundle.golden else with_golden(bundle)
    replaced = _files_of_the_model_in(directory)
    checkpoint.save(
        directory,
        bundle.config,
        bundle.weights,
        generation=bundle.generation,
        others=bundle.tokenizer.files() | ({CARD: bundle.card} if bundle.card else {}),
        finish=lambda new: write_manifest(new, proven, kind="nanochat"),
    )
    for name in replaced - _files_of_the_model_in(directory):
        _delete(directory / name)


def write_own(directory: Path, bundle: Bundle, progress: Progress | None) -> Written:
    """Write a model directory as a format does; its tensors are written at once."""
    save_model(directory, bundle)
    if progress is not None:
        count = sum(1 for _ in named_leaves(bundle.weights))
        progress(count, count)
    return Written(kind=OWN, architecture=OWN)


def read_folder(files: ModelFiles, config: ModelConfig, weights: Weights[Stored]) -> Bundle:
    """What a folder says of a model whose weights have been read."""
    folder, manifest = files.folder, files.manifest
    tokenizer = load_tokenizer(folder)
    generation = checkpoint.load_generation(folder)
    return Bundle(
        name=files.name,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        generation=generation or default_generation(tokenizer),
        generation_from=checkpoint.GENERATION if generation else "",
        licence="unknown" if manifest is None else manifest.licence,
        card=_read_card(folder),
        golden=None if manifest is None else manifest.golden,
        origin=files.origin,
    )


def _read_card(folder: Path) -> bytes:
    """Content of the card in a folder; empty if there is none."""
    if not exists(folder / CARD):
        return b""
    file = own_file(folder, CARD)
    if file is None:
        # It would go to the Hub with the model.
        _LOGGER.warning("%s leads out of the model's directory, and is not read", folder / CARD)
        return b""
    return read_bytes(file, limit=_MAX_CARD_BYTES)


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
