"""This file holds the staging of a repository: a folder that has what will be uploaded, and nothing else.

Files are linked or copied, so that the user's own directory is only read. What is staged of a model is what a
``nanochat.json`` vouches for, and few other files of known names: a directory may hold more than its owner would show.
A link in it may lead to no file elsewhere, which would be uploaded under a harmless name.
"""

import json
import logging
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nanochat import checkpoint
from nanochat.errors import FormatError, InputError, ModelNotFoundError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.source import Source
from nanochat.files import exists, own_file, read_bytes
from nanochat.loading import load_licence
from nanochat.proof.manifest import NAME, Manifest, read_manifest, write_manifest
from nanochat.publish.metadata import is_of_the_hub
from nanochat.saving import save_model

__all__ = ["GRAPHS", "LICENCE_FILES", "Original", "is_stock_gguf", "open_original", "stage"]

_CARD = "README.md"
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")
# What may lie beside a model's files without being a part of it.
_BESIDE = (*LICENCE_FILES, "NOTICE", "parity.json", "recipe.json")
# What a graph is opened with.
_OF_A_GRAPH = (
    "model.onnx.data",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_GRAPH, _PAGE = "model.onnx", "page.json"
# Formats that are a graph, which computes what it computes, whatever weights are in it.
GRAPHS = ("onnx", "web")
_MAX_BYTES = 2**20
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Original:
    """A model that shall be published.

    Parameters
    ----------
    path : Path
        As it is opened: a folder or a file.
    kind : str
        Its format: "nanochat" for a model directory, "gguf", "onnx", "mlx", "transformers" or "web".
    manifest : Manifest or None
        Of a folder.
    licence : str
        What its files say; empty, or "unknown", if they say nothing.
    card : bytes
        Content of its ``README.md``; may be empty.
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
        card = b""
        if exists(path / _CARD):
            card = read_bytes(_own_file(path, _CARD), limit=_MAX_BYTES)
        return Original(
            path=path,
            kind=manifest.kind,
            manifest=manifest,
            licence=manifest.licence,
            card=card,
        )
    if path.suffix == ".onnx" and path.name != _GRAPH:
        raise InputError(
            f"{path}: the graph of a repository is named {_GRAPH}; export the model again"
        )
    if path.suffix not in (".gguf", ".onnx"):
        raise InputError(f"{path} is no model directory, .gguf or .onnx file: pass one")
    return Original(
        path=path,
        kind=path.suffix[1:],
        manifest=None,
        licence=load_licence(path) or "",
    )


def stage(
    model: Original | Source,
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

    Raises
    ------
    FormatError, InputError
        As for `nanochat.saving.save_model`, or if a file is missing.
    OSError
        If a file cannot be copied.
    """
    place = _stage(model, folder, source, beside)
    if licence_file is not None and not exists(folder / licence_file.name):
        _link(licence_file.parent, folder, [licence_file.name])
    return place


def _stage(model: Original | Source, folder: Path, source: Source, beside: Iterable[str]) -> Path:
    if isinstance(model, Source):
        save_model(folder, source)
        return folder
    folder.mkdir(parents=True)
    if model.manifest is not None:
        _link(model.folder, folder, model.manifest.files)
        more = {name for name in (*_BESIDE, *beside) if exists(model.folder / name)}
        _link(model.folder, folder, more - model.manifest.files.keys())
        _write_manifest_again(_own_file(model.folder, NAME), folder / NAME, licence=source.licence)
        _say_what_stays(model, folder)
        return folder
    # What the user named is what the user means, even by a link.
    _put(model.path.resolve(), folder / model.path.name)
    others = list(_OF_A_GRAPH if model.kind == "onnx" else ())
    # What else lies beside a file may be another's; but a licence that the Hub does not know needs its text.
    others += [] if is_of_the_hub(source.licence) else LICENCE_FILES
    _link(model.folder, folder, [name for name in others if exists(model.folder / name)])
    write_manifest(folder, source, kind=model.kind)
    _link(model.folder, folder, beside)
    return folder / model.path.name


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
    own = ".onnx" if kind in GRAPHS else ".safetensors"
    for name in names:
        place = PurePosixPath(name)
        is_own = place.suffix == own and place.name == name and (kind != "onnx" or name == _GRAPH)
        if place.suffix in (".gguf", ".onnx", ".safetensors") and not is_own:
            raise FormatError(
                f"{path / NAME} names {name}, which is no part of the {kind} model there: export the model again, "
                "and each format to a place of its own"
            )


def is_stock_gguf(path: Path) -> bool:
    """Whether a GGUF file has an architecture of llama.cpp's."""
    return read_gguf(path).metadata.get("general.architecture") != "nanochat"


def _link(source: Path, target: Path, names: Iterable[str]) -> None:
    for name in names:
        file = _own_file(source, name)
        if not file.is_file():
            raise FormatError(
                f"{source / name}: no such file, though {NAME} names it; fetch it again"
            )
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        _put(file, place)


def _put(file: Path, place: Path) -> None:
    try:
        os.link(file, place)
    except OSError:
        # Another disk, one without such links, or somebody else's file.
        shutil.copyfile(file, place)


def _own_file(folder: Path, name: str) -> Path:
    """The file that a name in a folder stands for, which a link may not take from elsewhere.

    Raises
    ------
    FormatError
        If it does.
    """
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
    stays = sorted(
        path.name
        for path in model.folder.iterdir()
        if not exists(staged / path.name) and path.name != _CARD and not path.name.startswith(".")
    )
    if stays:
        _LOGGER.warning("not uploaded, as %s does not name it: %s", NAME, ", ".join(stays[:8]))
