"""This file holds the check of a model's files: whole, legal, as they were written, and computing what they should.

The last two need a record of how the model was when it was written: ``nanochat.json`` beside it, or the golden record
inside a single file.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from nanochat.bundle import Bundle, Golden
from nanochat.config import ModelConfig
from nanochat.errors import FormatError
from nanochat.export.format import OWN, Format, ModelFiles
from nanochat.export.formats import FORMATS, detect
from nanochat.export.run import choose_backend, start
from nanochat.generation.engine import Runner
from nanochat.proof.check import compare_golden, require_digests
from nanochat.proof.golden import tensor_digests
from nanochat.proof.manifest import NAME, Manifest, check_files, read_manifest
from nanochat.weights import named_leaves

__all__ = ["Verified", "require_proven", "require_recorded", "verify_model"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found to be right.

    Parameters
    ----------
    path : str
        What was checked.
    backend : str
        What ran the model, or would.
    tensors : int
        Tensors whose shapes and codes are legal.
    files : int or None
        Files whose sizes and hashes are those of ``nanochat.json``; `None` if there is none.
    golden : float or None
        Largest RMS error of a layer or of the logits beside the golden record; `None` if there is no record, and so
        nothing is proven of what the model computes.
    digests : bool
        Whether the record covers the configuration and the tokenizer, which those of format 1 do not.
    """

    path: str
    backend: str
    tensors: int
    files: int | None
    golden: float | None
    digests: bool


def verify_model(path: Path, *, backend: str = "auto") -> Verified:
    """Check a model directory, an exported folder, or a single file of a model.

    Parameters
    ----------
    backend : str
        What runs the model's weights, or its graph; see `nanochat.export.run.choose_backend`.

    Raises
    ------
    FormatError
        If a file is damaged, is not the one that was written, or the backend computes something else than the record
        says, with the first tensor or layer that differs.
    NumericError, ShapeError, ConfigError, ModelNotFoundError
        As for `nanochat.export.formats.load`.
    BackendError
        If the backend is unknown or cannot run here.
    """
    files = whole = ModelFiles(path)
    manifest = files.manifest
    beside = read_manifest(path.parent) if path.is_file() else None
    if beside is not None and path.name in beside.files:
        # The file that opens a folder, such as a page: all of it is what was written.
        whole, manifest = ModelFiles(path.parent), beside
        named = FORMATS.get(beside.kind)
        if named is not None and named.refusal(whole) is None:
            files = whole
    if manifest is not None:
        check_files(whole.path, manifest)
    form = detect(files)
    bundle = form.read(files)
    if manifest is not None:
        _require_agreement(whole, manifest, form, bundle.config)
    name, _ = choose_backend(bundle, backend)
    golden, worst = bundle.golden, None
    if golden is not None:
        worst = require_recorded(files, form, bundle, golden, lambda: start(bundle, name))
    return Verified(
        path=str(files.path),
        backend=name,
        tensors=len(list(named_leaves(bundle.weights))),
        files=None if manifest is None else len(manifest.files),
        golden=worst,
        digests=golden is not None and bool(golden.config),
    )


def require_proven(
    files: ModelFiles,
    form: Format[object],
    bundle: Bundle,
    engine: Callable[[], Runner[Any]],
    *,
    is_listed: bool,
) -> None:
    """As `require_recorded`, if there is a record; else `is_listed` says that the files have the hashes of the Hub.

    Raises
    ------
    FormatError
        If the model differs from its record, or if there are neither record nor hashes.
    """
    if bundle.golden is not None:
        require_recorded(files, form, bundle, bundle.golden, engine)
    elif is_listed:
        _LOGGER.warning(
            "%s: its files are those that the Hub lists; there is no golden record, so nothing says what it computes",
            files.name,
        )
    else:
        raise FormatError(
            f"{files.name} has no golden record to be verified with, and is not of the Hub, which lists hashes: load "
            "it without verify, or ask its author to save it with nanochat-ternary"
        )


def require_recorded(
    files: ModelFiles,
    form: Format[object],
    bundle: Bundle,
    golden: Golden,
    engine: Callable[[], Runner[Any]],
) -> float:
    """Refuse a model that is not the one of its record, by digests and then by what it computes on an engine.

    What is returned is the largest RMS error of a layer or of the logits.
    """
    where = str(files.path)
    found = tensor_digests(bundle.weights)
    require_digests(golden, found, bundle.config, bundle.tokenizer, where=where)
    form.require_as_written(files, bundle)
    return compare_golden(golden, engine(), bundle.weights, where=where)


def _require_agreement(
    files: ModelFiles, manifest: Manifest, form: Format[object], config: ModelConfig
) -> None:
    """Refuse a manifest that is silent about a file which was read, or says another thing than the files."""
    path = files.path
    opened = {name for found in form.found(files) for name in found.weights | found.beside}
    unlisted = sorted(opened - manifest.files.keys())
    if unlisted:
        raise FormatError(
            f"{path}: {unlisted[0]} belongs to the model, and {NAME} does not list it: it was added, or {NAME} was "
            "changed; fetch the model again, or export it again"
        )
    if manifest.kind != form.name:
        raise FormatError(
            f"{path}: {NAME} says kind {manifest.kind!r:.40}, and the files are of kind {form.name}: fetch the model "
            "again, or export it again"
        )
    said = manifest.config
    if form.name != OWN:
        # An export leaves out the heads that are for training only.
        said = replace(said, num_ahead=0, ahead_kind="independent")
    different = [f.name for f in fields(said) if getattr(said, f.name) != getattr(config, f.name)]
    if different:
        name = different[0]
        raise FormatError(
            f"{path}: {NAME} says {name}={getattr(said, name)!r:.80}, and the model's files say "
            f"{getattr(config, name)!r:.80}: fetch the model again, or export it again"
        )
