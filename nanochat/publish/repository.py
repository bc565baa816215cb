"""This file holds the staging of the repositories of a publication: verified, and exported to further formats."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nanochat.errors import FormatError
from nanochat.export.formats import Choices, Exported, export_model
from nanochat.export.source import Source
from nanochat.loading import load_source
from nanochat.proof.check import check_model
from nanochat.proof.manifest import read_manifest, write_manifest
from nanochat.publish.card_text import FormatRow
from nanochat.publish.options import Options
from nanochat.publish.staging import GRAPHS, LICENCE_FILES, Original, is_stock_gguf, stage
from nanochat.publish.training_log import RECIPE, Training, read_training
from nanochat.publish.upload import Destination

__all__ = ["Repository", "stage_repositories"]

_OURS = "nanochat-ternary"
# For whom a format is written: a folder that only this package opens would be the model directory once more.
_CHOICES = {"mlx": Choices(runtime="mlx-lm"), "hf": Choices(runtime="transformers")}
# What the Hub calls the library whose lines open a format as its users expect.
_LIBRARIES = {"gguf": "gguf", "mlx": "mlx", "hf": "transformers", "transformers": "transformers"}
_WORDS = {
    "nanochat": "safetensors, ternary",
    "gguf": "GGUF",
    "onnx": "ONNX",
    "mlx": "MLX",
    "hf": "transformers",
    "transformers": "transformers",
    "web": "page for browsers",
}


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository that is staged, but for its card.

    Parameters
    ----------
    destination : Destination
        Where it goes.
    folder, place : Path
        All its files, and what of them opens the model.
    kinds : sequence of str
        Its formats, that of `place` first.
    library : str
        What the Hub shows lines for that open it.
    base : str
        The repository of which this one holds a format; empty for the model's own.
    formats : sequence of FormatRow
        What was found of each format.
    training : Training
        What is known of it.
    """

    destination: Destination
    folder: Path
    place: Path
    kinds: Sequence[str]
    library: str
    base: str
    formats: Sequence[FormatRow]
    training: Training


def stage_repositories(
    model: Original | Source,
    destinations: Sequence[Destination],
    area: Path,
    options: Options,
    *,
    licence: str,
    report: Callable[[str], None],
) -> list[Repository]:
    """Stage a model and its formats in folders of `area`, all of them verified.

    Raises
    ------
    NanochatError
        As for `nanochat.publish.publish.publish`.
    """
    root, *others = destinations
    name = root.repo.partition("/")[2]
    folder = area / "root"
    report("checking hashes, tensors and the golden record")
    if isinstance(model, Source):
        source, kind = dataclasses.replace(model, licence=licence), "nanochat"
    else:
        # Of the user's own files, so that an error names them.
        _verify(model.path, model.kind, options)
        source, kind = load_source(model.path, name=name, licence=licence), model.kind
    place = stage(model, folder, source, beside=options.beside, licence_file=options.licence_file)
    training = _stage_training(model, folder, source)
    own = _own_row(place, folder, kind, options)
    exported = []
    for number, form in enumerate(options.formats):
        report(f"exporting {form}, and running the export")
        target = area / str(number) if options.separate else folder
        exported.append(_export(source, form, target, name, separate=options.separate))
        for text in (folder / file for file in LICENCE_FILES):
            if options.separate and text.exists():
                shutil.copyfile(text, target / text.name)
    places = [d.repo for d in others] or [_inside(e, folder) for e in exported]
    rows = [own, *(_row(e, place) for e, place in zip(exported, places, strict=True))]
    kinds = [kind, *(() if options.separate else options.formats)]
    main = Repository(
        destination=root,
        folder=folder,
        place=place,
        kinds=kinds,
        library=_own_library(kind, place) if len(kinds) == 1 else _OURS,
        base="",
        formats=rows,
        training=training,
    )
    if not options.separate:
        return [main]
    return [main, *(_satellite(e, d, root) for e, d in zip(exported, others, strict=True))]


def _satellite(exported: Exported, destination: Destination, root: Destination) -> Repository:
    """A repository that holds a format of another."""
    path = exported.path
    folder = path if path.is_dir() else path.parent
    return Repository(
        destination=destination,
        folder=folder,
        place=path,
        kinds=[exported.kind],
        library=_library(exported),
        base=root.repo,
        formats=[_row(exported, _inside(exported, folder))],
        training=Training(),
    )


def _verify(path: Path, kind: str, options: Options) -> tuple[str, float]:
    """Check a model's files and record on the first backend, and a graph as one: what ran it, and the largest error."""
    first = options.backends[:1] or (() if kind in GRAPHS else ("auto",))
    # Any other backend takes the weights out of a graph, and does not see what it does with them.
    for backend in dict.fromkeys([*first, *(("onnx",) if kind in GRAPHS else ())]):
        checked = check_model(path, backend=backend)
    if checked.golden is None:
        raise FormatError(
            f"{path} has no golden record, so nobody could tell whether a copy computes the same: load it and write it "
            "anew with Model.save_pretrained, or export it"
        )
    return checked.backend, checked.golden


def _own_row(place: Path, folder: Path, kind: str, options: Options) -> FormatRow:
    # What was staged is what will be uploaded.
    backend, error = _verify(place, kind, options)
    manifest = read_manifest(folder)
    assert manifest is not None
    return FormatRow(
        place="model directory" if place == folder else place.name,
        what=_WORDS.get(kind, kind),
        bytes=sum(record.bytes for record in manifest.files.values()),
        runtime=f"{_OURS}, {backend}",
        error=error,
    )


def _stage_training(model: Original | Source, folder: Path, source: Source) -> Training:
    """What is known of the training; a recipe that only the log of the run knows is staged."""
    if isinstance(model, Source) or model.manifest is None:
        return Training()
    training = read_training(model.folder, source.config)
    if training.recipe and not (folder / RECIPE).exists():
        text = json.dumps(training.recipe, indent=1) + "\n"
        (folder / RECIPE).write_text(text, encoding="utf-8")
    return training


def _export(source: Source, form: str, target: Path, name: str, *, separate: bool) -> Exported:
    # The card is the repository's, not each folder's.
    source = dataclasses.replace(source, name=name, card=b"")
    choices = _CHOICES.get(form, Choices())
    file = f"{name}-{choices.outtype.upper()}.gguf"
    folder = target if separate else target / form
    out = target / file if form == "gguf" else folder
    exported = export_model(source, out, kind=form, choices=choices, verify=True)
    if form == "gguf" and separate:
        write_manifest(target, source, kind=form)
    return exported


def _inside(exported: Exported, folder: Path) -> str:
    return "all files" if exported.path == folder else exported.path.relative_to(folder).as_posix()


def _row(exported: Exported, place: str) -> FormatRow:
    parity = exported.parity
    assert parity is not None
    words, written_as = _WORDS[exported.kind], exported.written_as
    return FormatRow(
        place=place,
        what=words if written_as == exported.kind else f"{words}, {written_as}",
        bytes=exported.bytes,
        runtime=parity.runtime,
        error=parity.report.rms_ratio,
        tolerance=parity.report.tolerance,
    )


def _own_library(kind: str, place: Path) -> str:
    # Of a GGUF file that only this package runs, the lines for llama.cpp would not be true.
    return _OURS if kind == "gguf" and not is_stock_gguf(place) else _LIBRARIES.get(kind, _OURS)


def _library(exported: Exported) -> str:
    """The library whose lines were shown to be true: the stock one, if it ran the export here."""
    parity = exported.parity
    assert parity is not None
    is_ours = parity.runtime.startswith(_OURS)
    return _OURS if is_ours else _LIBRARIES.get(exported.kind, _OURS)
