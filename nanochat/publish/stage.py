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
from typing import NamedTuple

from nanochat import checkpoint
from nanochat.errors import FormatError, InputError, ModelNotFoundError
from nanochat.export.formats import Choices, Exported, export_model
from nanochat.export.gguf.container import read_gguf
from nanochat.export.source import Source
from nanochat.files import exists, read_bytes
from nanochat.links import own_file
from nanochat.loading import load_licence, load_source
from nanochat.proof.check import check_model
from nanochat.proof.manifest import NAME, Manifest, read_manifest, write_manifest
from nanochat.publish.card_text import FormatRow
from nanochat.publish.metadata import is_of_the_hub, require_licence
from nanochat.publish.options import Options
from nanochat.publish.training_log import RECIPE, Training, read_training

__all__ = [
    "LICENCE_FILES",
    "Original",
    "Repository",
    "choose_licence",
    "find_licence_file",
    "open_original",
    "require_publishable",
    "stage",
    "stage_repositories",
]

_OURS = "nanochat-ternary"


class _Format(NamedTuple):
    """What a card calls a format, and in the Hub's words: the library whose lines open it, and its tag."""

    title: str
    library: str = _OURS
    tags: Sequence[str] = ()
    # For whom it is written: a folder that only this package opens would be the model directory once more.
    choices: Choices = Choices()


_FORMATS = {
    "nanochat": _Format("safetensors, ternary"),
    "gguf": _Format("GGUF", "gguf", ["gguf"]),
    "onnx": _Format("ONNX", tags=["onnx"]),
    "mlx": _Format("MLX", "mlx", ["mlx"], Choices(runtime="mlx-lm")),
    "hf": _Format(
        "transformers", "transformers", ["transformers"], Choices(runtime="transformers")
    ),
    "transformers": _Format("transformers", "transformers", ["transformers"]),
    "web": _Format("page for browsers", tags=["onnx"]),
}
# Those that are a graph, which computes what it computes, whatever weights are in it; and what a graph is opened with.
_GRAPHS = ("onnx", "web")
_GRAPH, _PAGE = "model.onnx", "page.json"
_OF_A_GRAPH = (
    *("model.onnx.data", "chat_template.jinja", "generation_config.json"),
    *("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
)
# What may lie beside a model's files without being a part of it.
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
_BESIDE = (*LICENCE_FILES, "NOTICE", "parity.json", RECIPE)

_CARD = "README.md"
_MAX_BYTES = 2**20
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Original:
    """A model that shall be published, in a folder, which has a manifest, or a file.

    `kind` is its format, and `licence` what its files say: empty, or "unknown", if they say nothing. `card` is the
    content of its ``README.md``, and may be empty.
    """

    path: Path
    kind: str
    manifest: Manifest | None
    licence: str
    card: bytes = b""

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.path if self.path.is_dir() else self.path.parent


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository that is staged, but for its card.

    `folder` has all its files, of which `place` opens the model; `formats` is what was found of each format; `library`
    and `tags` are what the Hub shows for them. `base` is the repository of which this one holds a format; it is empty
    for the model's own.
    """

    repo: str
    folder: Path
    place: Path
    library: str
    tags: Sequence[str]
    formats: Sequence[FormatRow]
    base: str = ""
    training: Training = field(default_factory=Training)


def open_original(path: Path) -> Original:
    """Say what a path is, for its publication.

    Raises
    ------
    ModelNotFoundError
        If it is not there.
    InputError
        If it is no model, or is named so that nobody would find it in a repository.
    FormatError
        If it has no ``nanochat.json``, or a damaged one.
    """
    if not exists(path):
        raise ModelNotFoundError(f"{path}: no such model directory, .gguf or .onnx file")
    if path.suffix == ".onnx" and exists(path.parent / NAME):
        # Of an exported folder, whose other files belong to it.
        path = path.parent
    if path.is_dir():
        manifest = read_manifest(path)
        if manifest is None:
            raise FormatError(
                f"{path} has no {NAME}, so nothing says what its files must be and compute: load it and write it anew "
                "with Model.save_pretrained, or export it"
            )
        _require_kind(path, manifest)
        has_card = exists(path / _CARD)
        card = read_bytes(_own_file(path, _CARD), limit=_MAX_BYTES) if has_card else b""
        kind, licence = manifest.kind, manifest.licence
        return Original(path=path, kind=kind, manifest=manifest, licence=licence, card=card)
    if path.suffix == ".onnx" and path.name != _GRAPH:
        raise InputError(
            f"{path}: the graph of a repository is named {_GRAPH}; export the model again"
        )
    if path.suffix not in (".gguf", ".onnx"):
        raise InputError(f"{path} is no model directory, .gguf or .onnx file: pass one")
    licence = load_licence(path) or ""
    return Original(path=path, kind=path.suffix[1:], manifest=None, licence=licence)


def require_publishable(model: Original | Source, options: Options) -> str:
    """Refuse what could not be published whatever its files compute, and return its licence."""
    licence_file = options.licence_file
    if isinstance(model, Original):
        licence_file = licence_file or find_licence_file(model.folder)
        if model.kind in options.formats and not options.separate:
            raise InputError(f"{model.path} is {model.kind} already: leave that format out")
    return choose_licence(model.licence, options.licence or "", licence_file=licence_file)


def find_licence_file(folder: Path) -> Path | None:
    """The text of a licence that lies in a folder."""
    return next((folder / name for name in LICENCE_FILES if exists(folder / name)), None)


def choose_licence(own: str, given: str, *, licence_file: Path | None = None) -> str:
    """The one licence that files and user name; either may be empty, and `licence_file` is its text.

    Raises
    ------
    InputError
        If there is none, there are two, or it is none that anybody could find.
    """
    own = "" if own.lower() == "unknown" else own
    if own and given and own.lower() != given.lower():
        raise InputError(
            f"licence={given!r:.80}, but the files say {own}: leave it out, or write the model again with the right one"
        )
    licence = own or given
    if not licence:
        raise InputError(
            "nothing says which licence the weights have, and without one nobody may use them: pass licence (--licence "
            "for commands), an SPDX identifier such as MIT or Apache-2.0"
        )
    require_licence(licence, licence_file=licence_file.name if licence_file else "")
    return licence


def stage_repositories(
    model: Original,
    repos: Sequence[str],
    area: Path,
    options: Options,
    *,
    licence: str,
    report: Callable[[str], None],
) -> list[Repository]:
    """Stage a model and its formats in folders of `area`, all of them verified; its own repository is the first."""
    main, *others = repos
    folder, separate = area / "root", options.separate
    report("checking hashes, tensors and the golden record")
    # Of the user's own files, so that an error names them.
    _verify(model.path, model.kind, options)
    source = load_source(model.path, name=main.partition("/")[2], licence=licence)
    place = stage(model, folder, source, beside=options.beside, licence_file=options.licence_file)
    rows = [_own_row(model, folder, place, options)]
    training = _stage_training(model, folder, source)
    satellites = []
    for number, form in enumerate(options.formats):
        report(f"exporting {form}, and running the export")
        target = area / str(number) if separate else folder
        exported = _export(source, form, target, separate=separate)
        rows.append(_row(exported, others[number] if separate else _inside(exported, folder)))
        if separate:
            satellites.append(_satellite(exported, target, others[number], folder, base=main))
    kinds = [model.kind, *(() if separate else options.formats)]
    own = Repository(
        repo=main,
        folder=folder,
        place=place,
        library=_library(place, model.kind) if len(kinds) == 1 else _OURS,
        tags=[tag for kind in kinds for tag in _FORMATS[kind].tags],
        formats=rows,
        training=training,
    )
    return [own, *satellites]


def stage(
    model: Original,
    folder: Path,
    source: Source,
    *,
    beside: Iterable[str] = (),
    licence_file: Path | None = None,
) -> Path:
    """Put a model's files into `folder`, which is new, with a ``nanochat.json``, and return the path that opens it.

    Parameters
    ----------
    source : Source
        The same model with its licence.
    beside : iterable of str
        Names of further files that lie beside it.
    licence_file : Path or None
        The text of its licence, where that does not lie beside it.
    """
    folder.mkdir(parents=True)
    place = folder
    if model.manifest is not None:
        _link(model.folder, folder, model.manifest.files)
        more = {name for name in (*_BESIDE, *beside) if exists(model.folder / name)}
        _link(model.folder, folder, more - model.manifest.files.keys())
        _write_manifest_again(_own_file(model.folder, NAME), folder / NAME, licence=source.licence)
        _say_what_stays(model, folder)
    else:
        place = folder / model.path.name
        # What the user named is what the user means, even by a link.
        _put(model.path.resolve(), place)
        others = list(_OF_A_GRAPH if model.kind == "onnx" else ())
        # What else lies beside a file may be another's; but a licence that the Hub does not know needs its text.
        others += [] if is_of_the_hub(source.licence) else LICENCE_FILES
        _link(model.folder, folder, [name for name in others if exists(model.folder / name)])
        write_manifest(folder, source, kind=model.kind)
        _link(model.folder, folder, beside)
    if licence_file is not None and not exists(folder / licence_file.name):
        _link(licence_file.parent, folder, [licence_file.name])
    return place


def _verify(path: Path, kind: str, options: Options) -> tuple[str, float]:
    """Check a model's files and record on the first backend, and a graph as one: what ran it, and the largest error."""
    first = options.backends[:1] or (() if kind in _GRAPHS else ("auto",))
    # Any other backend takes the weights out of a graph, and does not see what it does with them.
    for backend in dict.fromkeys([*first, *(("onnx",) if kind in _GRAPHS else ())]):
        checked = check_model(path, backend=backend)
    if checked.golden is None:
        raise FormatError(
            f"{path} has no golden record, so nobody could tell whether a copy computes the same: load it and write it "
            "anew with Model.save_pretrained, or export it"
        )
    return checked.backend, checked.golden


def _own_row(model: Original, folder: Path, place: Path, options: Options) -> FormatRow:
    # What was staged is what will be uploaded.
    backend, error = _verify(place, model.kind, options)
    manifest = read_manifest(folder)
    assert manifest is not None
    size = sum(record.bytes for record in manifest.files.values())
    where = "model directory" if place == folder else place.name
    return FormatRow(where, _FORMATS[model.kind].title, size, f"{_OURS}, {backend}", error)


def _stage_training(model: Original, folder: Path, source: Source) -> Training:
    """What is known of the training; a recipe that only the log of the run knows is staged."""
    if model.manifest is None:
        return Training()
    training = read_training(model.folder, source.config)
    if training.recipe and not (folder / RECIPE).exists():
        text = json.dumps(training.recipe, indent=1) + "\n"
        (folder / RECIPE).write_text(text, encoding="utf-8")
    return training


def _export(source: Source, form: str, target: Path, *, separate: bool) -> Exported:
    # The card is the repository's, not each folder's.
    source, choices = dataclasses.replace(source, card=b""), _FORMATS[form].choices
    out = target if separate else target / form
    if form == "gguf":
        out = target / f"{source.name}-{choices.outtype.upper()}.gguf"
    exported = export_model(source, out, kind=form, choices=choices, verify=True)
    if form == "gguf" and separate:
        write_manifest(target, source, kind=form)
    return exported


def _inside(exported: Exported, folder: Path) -> str:
    return "all files" if exported.path == folder else exported.path.relative_to(folder).as_posix()


def _row(exported: Exported, place: str) -> FormatRow:
    parity, what = exported.parity, _FORMATS[exported.kind].title
    assert parity is not None
    if exported.written_as != exported.kind:
        what = f"{what}, {exported.written_as}"
    report = parity.report
    return FormatRow(
        place, what, exported.bytes, parity.runtime, report.rms_ratio, report.tolerance
    )


def _satellite(exported: Exported, folder: Path, repo: str, own: Path, *, base: str) -> Repository:
    """A repository that holds a format of the model in `own`, which is that of `base`."""
    for name in LICENCE_FILES:
        if (own / name).exists():
            shutil.copyfile(own / name, folder / name)
    row, form = _row(exported, _inside(exported, folder)), _FORMATS[exported.kind]
    return Repository(
        repo=repo,
        folder=folder,
        place=exported.path,
        # The stock library's lines were shown to be true if it ran the export here.
        library=_OURS if row.runtime.startswith(_OURS) else form.library,
        tags=form.tags,
        formats=[row],
        base=base,
    )


def _library(place: Path, kind: str) -> str:
    # Of a GGUF file that only this package runs, the lines for llama.cpp would not be true.
    is_own = kind == "gguf" and read_gguf(place).metadata.get("general.architecture") == "nanochat"
    return _OURS if is_own else _FORMATS[kind].library


def _require_kind(path: Path, manifest: Manifest) -> None:
    """Refuse a folder that is not what its ``nanochat.json`` calls it, or has weights that nothing here would run."""
    kind, names = manifest.kind, manifest.files
    if kind == "gguf":
        raise FormatError(f"{path} is the folder of a .gguf file: pass that file")
    if _GRAPH in names:
        fitting: tuple[str, ...] = ("web",) if _PAGE in names else ("onnx",)
    else:
        fitting = ("nanochat",) if checkpoint.is_ours(path) else ("mlx", "transformers")
    if kind not in fitting:
        raise FormatError(
            f"{path / NAME} says that the folder is of the kind {kind!r:.40}, but its files are those of "
            f"{' or '.join(fitting)}: export the model again"
        )
    own = ".onnx" if kind in _GRAPHS else ".safetensors"
    for name in names:
        place = PurePosixPath(name)
        is_own = place.suffix == own and place.name == name and (kind != "onnx" or name == _GRAPH)
        if place.suffix in (".gguf", ".onnx", ".safetensors") and not is_own:
            raise FormatError(
                f"{path / NAME} names {name}, which is no part of the {kind} model there: export the model again, "
                "and each format to a place of its own"
            )


def _link(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        file = _own_file(source, name)
        if not file.is_file():
            raise FormatError(
                f"{source / name}: no such file, though {NAME} names it; fetch it again"
            )
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


def _write_manifest_again(old: Path, new: Path, *, licence: str) -> None:
    """Copy ``nanochat.json`` with the licence that was chosen."""
    # If it names itself, it is there, and is the user's own by a link.
    new.unlink(missing_ok=True)
    content = json.loads(old.read_bytes())
    if content["licence"] == licence:
        shutil.copyfile(old, new)
        return
    text = json.dumps({**content, "licence": licence}, separators=(",", ":"))
    new.write_text(text + "\n", encoding="utf-8")


def _say_what_stays(model: Original, staged: Path) -> None:
    """Name what lies in the directory and is not uploaded."""
    names = (path.name for path in model.folder.iterdir())
    stays = [n for n in names if not exists(staged / n) and n != _CARD and not n.startswith(".")]
    if stays:
        listed = ", ".join(sorted(stays)[:8])
        _LOGGER.warning("not uploaded, as %s does not name it: %s", NAME, listed)
