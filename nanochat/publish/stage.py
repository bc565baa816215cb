"""This file holds the staging of repositories: folders that have what will be uploaded, verified, and nothing else.

Files are linked or copied, so that the user's own directory is only read. What is staged of a model is what a
``nanochat.json`` vouches for, and few other files of known names: a directory may hold more than its owner would show.
A link in it may lead to no file elsewhere, which would be uploaded under a harmless name.
"""

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from nanochat import backends
from nanochat.bundle import CARD, Bundle
from nanochat.errors import FormatError, InputError, ModelNotFoundError
from nanochat.export.export import export_model
from nanochat.export.format import OURS, Format, ModelFiles
from nanochat.export.formats import FORMATS, detect, format_named, is_file_name, load, model_path
from nanochat.export.verify import verify_model
from nanochat.files import exists, own_file, read_bytes, require_file
from nanochat.proof.manifest import NAME, read_manifest, write_manifest
from nanochat.publish.licence import LICENCE_FILES, choose_licence, find_licence_file, hub_name
from nanochat.publish.options import PushOptions
from nanochat.publish.training_log import RECIPE, Training, read_training

__all__ = [
    "FormatRow",
    "Original",
    "Repository",
    "open_original",
    "require_publishable",
    "stage",
    "stage_repositories",
]

# What may lie in a model's directory without being a part of it.
_KNOWN_EXTRAS = (*LICENCE_FILES, "NOTICE", "parity.json", RECIPE)

_MAX_BYTES = 2**20
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Original:
    """A model that shall be published: a folder with a manifest, or a file.

    `licence` is what its files say, or "unknown"; `card` is the content of its ``README.md``, and may be empty.
    """

    files: ModelFiles
    form: Format[Any]
    licence: str
    card: bytes = b""


class FormatRow(NamedTuple):
    """A format of the model, and what computed it at the push.

    `place` is a file, a folder or another repository, and `bytes` the size of all its files. `error` is the RMS ratio
    of the logits in `runtime` to those of the model, and `tolerance` what that runtime may differ by, if it rounds.
    """

    place: str
    what: str
    bytes: int
    runtime: str
    error: float
    tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository that is staged, but for its card.

    `folder` has all its files, of which `place` opens the model; `formats` is what was found of each format; `library`
    and `tags` are what the Hub shows for them, of which a tag may be empty. `card` is the model's own, and `base` the
    repository of which this one holds a format: one of them is empty.
    """

    repo: str
    folder: Path
    place: Path
    library: str
    tags: Sequence[str]
    formats: Sequence[FormatRow]
    card: bytes = b""
    base: str = ""
    training: Training = field(default_factory=Training)


def open_original(path: Path) -> Original:
    """Say what a path is, for its publication."""
    if not exists(path):
        raise ModelNotFoundError(f"{path}: no such model {model_path()}")
    if not path.is_dir() and not is_file_name(path.name):
        raise InputError(f"{path} is no model {model_path()}: pass one")
    files = ModelFiles(path)
    form = detect(files)
    if path.is_dir():
        _require_kind(files, form)
    elif not form.suffix and exists(path.parent / NAME):
        # Of an exported folder, whose other files belong to it.
        return open_original(path.parent)
    elif not any(found.place in ("", path.name) for found in form.layout.find({path.name})):
        raise InputError(
            f"{path}: the file of a repository is named {form.layout.needs}; export the model again"
        )
    # Beside a file, it may be another's.
    has_card = path.is_dir() and exists(path / CARD)
    card = read_bytes(_own_file(path, CARD), limit=_MAX_BYTES) if has_card else b""
    return Original(files=files, form=form, licence=form.licence(files), card=card)


def require_publishable(model: Original | Bundle, options: PushOptions) -> str:
    """Refuse what could not be published whatever its files compute, and return its licence."""
    for backend in options.backends:
        # Refuses what cannot run here.
        backends.choose(backend)
    has_text = any(file.name in LICENCE_FILES for file in options.extra_files)
    if isinstance(model, Original):
        has_text = has_text or find_licence_file(model.files.folder) is not None
        names = (model.form.name, *model.form.aliases)
        if not options.separate and any(name in options.formats for name in names):
            raise InputError(
                f"{model.files.path} is {model.form.name} already: leave that format out"
            )
    return choose_licence(model.licence, options.licence or "", has_text=has_text)


def stage_repositories(
    model: Original,
    repos: Sequence[str],
    area: Path,
    options: PushOptions,
    *,
    licence: str,
    report: Callable[[str], None],
) -> list[Repository]:
    """Stage a model and its formats in folders of `area`, all of them verified; its own repository is the first."""
    main, separate, folder = repos[0], options.separate, area / "root"
    report("checking hashes, tensors and the golden record")
    # Of the user's own files, so that an error names them.
    _verify(model, model.files.path, options)
    bundle = load(model.files.path, name=main.partition("/")[2], licence=licence)
    place = stage(model, folder, bundle, extra_files=options.extra_files)
    rows = [_own_row(model, folder, place, options)]
    training = _stage_training(model, folder, bundle)
    parts = []
    for number, kind in enumerate(options.formats):
        report(f"exporting {kind}, and running the export")
        if separate:
            part = _stage_format(bundle, kind, area / str(number), repos[1 + number], base=main)
            _link(folder, part.folder, _existing(folder, LICENCE_FILES))
            where = part.repo
        else:
            inner = folder if format_named(kind).suffix else folder / kind
            part = _stage_format(bundle, kind, inner, main)
            where = part.place.relative_to(folder).as_posix()
        rows += [row._replace(place=where) for row in part.formats]
        parts.append(part)
    inside = [] if separate else parts
    own = Repository(
        repo=main,
        folder=folder,
        place=place,
        library=OURS if inside else model.form.library_of(ModelFiles(place)),
        tags=[model.form.tag, *(tag for part in inside for tag in part.tags)],
        formats=rows,
        card=model.card,
        training=training,
    )
    return [own, *(parts if separate else ())]


def stage(
    model: Original, folder: Path, bundle: Bundle, *, extra_files: Iterable[Path] = ()
) -> Path:
    """Put a model's files into `folder`, which is new, with a ``nanochat.json``, and return the path that opens it.

    `bundle` is the same model with its licence; an extra file whose name is there already is not needed.
    """
    folder.mkdir(parents=True)
    path, source, manifest = model.files.path, model.files.folder, model.files.manifest
    if manifest is not None:
        place = folder
        names = {*manifest.files, *_existing(source, _KNOWN_EXTRAS)}
    else:
        place = folder / path.name
        # What the user named is what the user means, even by a link.
        _put(path.resolve(), place)
        found = {name for one in model.form.found(model.files) for name in one.files}
        # What else lies beside a file may be another's; but a licence that the Hub does not know needs its text.
        texts = LICENCE_FILES if hub_name(bundle.licence) is None else ()
        names = _existing(source, {*found, *texts} - {path.name, CARD, NAME, RECIPE})
    _link(source, folder, names)
    if manifest is None:
        write_manifest(folder, bundle, kind=model.form.name)
    else:
        # A manifest that names itself has been linked, and is the user's own.
        (folder / NAME).unlink(missing_ok=True)
        said = json.loads(_own_file(source, NAME).read_bytes())
        text = json.dumps({**said, "licence": bundle.licence}, separators=(",", ":"))
        (folder / NAME).write_text(text + "\n", encoding="utf-8")
    for file in extra_files:
        if not exists(folder / file.name):
            _link(file.parent, folder, [file.name])
    if manifest is not None:
        _say_what_stays(source, folder)
    return place


def _verify(model: Original, path: Path, options: PushOptions) -> tuple[str, float]:
    """Check a model's files and record on the first backend, and a graph as one: what ran it, and the largest error."""
    # Any other backend takes the weights out of a graph, and does not see what it does with them.
    graph = backends.graphs() if model.form.layout.is_graph else ()
    for backend in dict.fromkeys([*options.backends[:1], *graph]) or ["auto"]:
        verified = verify_model(path, backend=backend)
    if verified.golden is None:
        raise FormatError(
            f"{path} has no golden record, so nobody could tell whether a copy computes the same: load it and write it "
            "anew with Model.save_pretrained, or export it"
        )
    return verified.backend, verified.golden


def _own_row(model: Original, folder: Path, place: Path, options: PushOptions) -> FormatRow:
    # What was staged is what will be uploaded.
    backend, error = _verify(model, place, options)
    manifest = read_manifest(folder)
    assert manifest is not None
    size = sum(record.bytes for record in manifest.files.values())
    where = "model directory" if place == folder else place.name
    return FormatRow(where, model.form.title, size, f"{OURS}, {backend}", error)


def _stage_training(model: Original, folder: Path, bundle: Bundle) -> Training:
    """What is known of the training; a recipe that only the log of the run knows is staged."""
    if model.files.manifest is None:
        return Training()
    training = read_training(model.files.folder, bundle.config)
    if training.recipe and not (folder / RECIPE).exists():
        text = json.dumps(training.recipe, indent=1) + "\n"
        (folder / RECIPE).write_text(text, encoding="utf-8")
    return training


def _stage_format(
    bundle: Bundle, kind: str, folder: Path, repo: str, *, base: str = ""
) -> Repository:
    """Export a model into `folder`, which alone is a repository of `base`, or a part of another."""
    form = format_named(kind)
    options = form.published or form.choose()
    place = folder / form.file_name(bundle.name, options) if form.suffix else folder
    # The card is the repository's, not each folder's.
    without_card = dataclasses.replace(bundle, card=b"")
    exported = export_model(without_card, place, kind=kind, options=options, verify=True)
    if form.suffix and base:
        write_manifest(folder, exported.bundle, kind=form.name)
    architecture, parity = exported.written.architecture, exported.parity
    row = FormatRow(
        place=place.name if form.suffix else "all files",
        what=form.title if architecture == kind else f"{form.title}, {architecture}",
        bytes=exported.bytes,
        # Without a runtime of its own, the same numbers are read back.
        runtime=parity.runtime if parity else f"{OURS}, by digests",
        error=parity.report.rms_ratio if parity else 0.0,
        tolerance=parity.report.tolerance if parity else None,
    )
    return Repository(
        repo=repo,
        folder=folder,
        place=place,
        # The stock library's lines were shown to be true if it ran the export here.
        library=form.library if parity else OURS,
        tags=[form.tag],
        formats=[row],
        base=base,
    )


def _require_kind(files: ModelFiles, form: Format[Any]) -> None:
    """Refuse a folder that is not what its ``nanochat.json`` calls it, or has weights that nothing here would run."""
    path, manifest = files.path, files.manifest
    if manifest is None:
        raise FormatError(
            f"{path} has no {NAME}, so nothing says what its files must be and compute: load it and write it anew "
            "with Model.save_pretrained, or export it"
        )
    kind = manifest.kind
    if kind in FORMATS and FORMATS[kind].suffix:
        raise FormatError(f"{path} is the folder of a {FORMATS[kind].suffix} file: pass that file")
    if kind != form.name:
        raise FormatError(
            f"{path / NAME} says that the folder is of the kind {kind!r:.40}, but its files are those of "
            f"{form.name}: export the model again"
        )
    for name in manifest.files:
        is_weights = is_file_name(name) or PurePosixPath(name).suffix == ".safetensors"
        if is_weights and not form.layout.may_hold(name):
            raise FormatError(
                f"{path / NAME} names {name}, which is no part of the {kind} model there: export the model again, "
                "and each format to a place of its own"
            )


def _existing(folder: Path, names: Iterable[str]) -> set[str]:
    return {name for name in names if exists(folder / name)}


def _link(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        file = _own_file(source, name)
        require_file(file)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        _put(file, target / name)


def _put(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:
        # Another disk, one without such links, or somebody else's file.
        shutil.copyfile(file, place)


def _own_file(folder: Path, name: str) -> Path:
    """The file that a name in a folder stands for, which a link may not take from elsewhere."""
    file = own_file(folder, name)
    if file is None:
        raise FormatError(
            f"{folder / name} is a link to {(folder / name).resolve()}, outside of the model's directory, and would be "
            "uploaded: replace it with a copy if it shall be, or remove it"
        )
    return file


def _say_what_stays(source: Path, staged: Path) -> None:
    """Name what lies in the directory and is not uploaded."""
    names = (path.name for path in source.iterdir())
    stays = [n for n in names if not exists(staged / n) and n != CARD and not n.startswith(".")]
    if stays:
        listed = ", ".join(sorted(stays)[:8])
        _LOGGER.warning("not uploaded, as %s does not name it: %s", NAME, listed)
