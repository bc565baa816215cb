"""This package holds the formats of model files, one in each module, and the door through which every file is read.

A module here that has a `FORMAT` is a format: there is no list to add it to. See `nanochat.export.format`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from pkgutil import iter_modules
from typing import Any

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import FormatError, InputError, ModelNotFoundError
from nanochat.export.format import OWN, Format, Found, Layout, ModelFiles

__all__ = [
    "FORMATS",
    "Candidate",
    "candidates",
    "detect",
    "file_suffixes",
    "format_named",
    "is_file_name",
    "layouts",
    "load",
    "load_config",
    "load_generation",
    "load_header_config",
    "model_path",
    "written_names",
]


def _discover() -> dict[str, Format[Any]]:
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    found = {module.FORMAT.name: module.FORMAT for module in modules}
    # Asked first, as most files are of it.
    return {OWN: found.pop(OWN), **found}


# Every format by its name.
FORMATS: dict[str, Format[Any]] = _discover()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model that could be opened.

    Parameters
    ----------
    layout : Layout
        What its files are; which of the formats of that layout it is, they say inside.
    folder : str
        The folder in which it lies, with slashes; empty for the outermost.
    found : Found
        The model in that folder.
    """

    layout: Layout
    folder: str
    found: Found

    @property
    def kind(self) -> str:
        """What a user calls its layout."""
        return self.layout.name

    @property
    def place(self) -> str:
        """The file or folder to open; empty for the outermost folder."""
        return self._path(self.found.place)

    @property
    def files(self) -> tuple[str, ...]:
        """What has to be there."""
        return tuple(sorted(map(self._path, self.found.files)))

    def complete(
        self, is_there: Callable[[str], bool], read: Callable[[str], bytes], *, where: str
    ) -> "Candidate":
        """The same with the files that its own files name; see `Layout.complete`, but for paths."""
        found = self.layout.complete(
            self.found,
            lambda name: is_there(self._path(name)),
            lambda name: read(self._path(name)),
            where=f"{where}/{self.folder}".rstrip("/"),
        )
        return replace(self, found=found)

    def _path(self, name: str) -> str:
        return _join(PurePosixPath(self.folder, name))


def format_named(kind: str) -> Format[Any]:
    """The format of a name or alias."""
    for form in FORMATS.values():
        if kind in (form.name, *form.aliases):
            return form
    raise InputError(f"there is no format {kind!r:.40}: choose one of {', '.join(FORMATS)}")


def written_names() -> list[str]:
    """Names and aliases of the formats that a model can be exported to."""
    written = [form for form in FORMATS.values() if form.options is not None]
    return [name for form in written for name in (form.name, *form.aliases)]


def detect(files: ModelFiles) -> Format[Any]:
    """The format that files are of: the one that their ``nanochat.json`` names, or the first that claims them.

    Raises
    ------
    ModelNotFoundError
        If none claims them; of what might be a model, with the reason of each.
    FormatError
        If a file that says it is damaged.
    """
    manifest = files.manifest
    named = None if manifest is None else FORMATS.get(manifest.kind)
    asked = dict.fromkeys(FORMATS.values() if named is None else (named, *FORMATS.values()))
    reasons: dict[str, str] = {}
    for form in asked:
        reason = form.refusal(files)
        if reason is None:
            return form
        reasons[form.name] = reason
    if files.config is None and files.path.is_dir():
        suffixes = " or ".join(file_suffixes())
        raise ModelNotFoundError(
            f"{files.path} holds no model, which is a config.json with tensors beside it, or a {suffixes} file: pass "
            "the folder or the file of one"
        )
    said = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    # A folder with a configuration is a model, if none of ours.
    error = FormatError if files.config is not None else ModelNotFoundError
    raise error(f"{files.path} is no model that can be read ({said}): pass another")


def load(
    path: Path, *, name: str | None = None, licence: str | None = None, origin: str = ""
) -> Bundle:
    """Read a model with all that is said of it, whatever its format, without preparing it for a backend.

    Parameters
    ----------
    path : Path
        A folder, or a file that is a model by itself.
    name : str, optional
        What it is called where files show a name; absent is as the file or folder is.
    licence : str, optional
        SPDX identifier of the weights' licence; absent is what the files say, or "unknown".
    origin : str
        See `Bundle`.

    Raises
    ------
    ConfigError
        If its configuration cannot work.
    FormatError
        If a file is damaged, or of no known format.
    ModelNotFoundError
        If there is none.
    NumericError, ShapeError
        If a tensor holds what no model may, or has another shape than the configuration asks for.
    """
    files = ModelFiles(path, name=name, origin=origin)
    bundle = detect(files).read(files)
    return replace(bundle, licence=licence) if licence else bundle


def load_config(path: Path) -> ModelConfig:
    """The configuration of a model, without its weights where its files allow that."""
    files = ModelFiles(path)
    return detect(files).config(files)


def load_header_config(path: Path) -> ModelConfig:
    """The configuration that headers tell; see `nanochat.export.format.Format.header_config`."""
    files = ModelFiles(path)
    return detect(files).header_config(files)


def load_generation(path: Path) -> tuple[Mapping[str, object], str]:
    """What is said of how a model is to generate, and where; see `nanochat.export.format.Format.generation`."""
    files = ModelFiles(path)
    return detect(files).generation(files)


def candidates(names: Iterable[str]) -> list[Candidate]:
    """Every model among the files of a repository, the outermost first, told by their names alone.

    Examples
    --------
    >>> names = ["config.json", "model.safetensors", "run.py", "x-TQ2_0.gguf", "onnx/model.onnx"]
    >>> [(c.kind, c.place, c.files) for c in candidates(names)]  # doctest: +NORMALIZE_WHITESPACE
    [('safetensors', '', ('config.json', 'model.safetensors')), ('gguf', 'x-TQ2_0.gguf', ('x-TQ2_0.gguf',)),
     ('onnx', 'onnx', ('onnx/model.onnx',))]
    """
    folders: dict[str, set[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        folders.setdefault(_join(path.parent), set()).add(path.name)
    return [
        Candidate(layout=layout, folder=folder, found=found)
        for folder in sorted(folders, key=lambda folder: (folder.count("/") + bool(folder), folder))
        for layout in layouts()
        for found in layout.find(folders[folder])
    ]


def layouts() -> list[Layout]:
    """All layouts, each once."""
    return list(dict.fromkeys(form.layout for form in FORMATS.values()))


def is_file_name(name: str) -> bool:
    """Whether a file of that name is a model by itself.

    >>> is_file_name("x-TQ2_0.GGUF"), is_file_name("model.safetensors")
    (True, False)
    """
    return name.lower().endswith(file_suffixes())


def file_suffixes() -> tuple[str, ...]:
    """Of files that are a model by themselves."""
    return tuple(suffix for form in FORMATS.values() for suffix in form.file_suffixes)


def model_path() -> str:
    """What the path of a model may be, for messages: a "directory, .gguf or .onnx file"."""
    *first, last = ("directory", *file_suffixes())
    return f"{', '.join(first)} or {last} file"


def _join(path: PurePosixPath) -> str:
    return "" if path == PurePosixPath() else path.as_posix()
