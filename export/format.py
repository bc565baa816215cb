"""This file holds what a format is: all that anybody asks of one kind of model file, in one object.

Loading, exporting, verifying, publishing, the zoo and the command line ask the formats that are registered in
`nanochat.export.formats`, and know none by name.
"""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, TypeVar, get_args, get_type_hints

from nanochat.bundle import Bundle
from nanochat.checkpoint import GENERATION, load_generation
from nanochat.config import ModelConfig
from nanochat.errors import InputError
from nanochat.files import exists, parse_json, read_bytes, require_file
from nanochat.proof.manifest import Manifest, read_manifest
from nanochat.proof.parity import Artefact
from nanochat.tensors import MAX_INDEX_BYTES

__all__ = [
    "OURS",
    "OWN",
    "OWN_TYPES",
    "Format",
    "Found",
    "Layout",
    "ModelFiles",
    "NoOptions",
    "Progress",
    "Written",
    "literals",
    "option",
]

T = TypeVar("T")
Options = TypeVar("Options")

# Called with the steps done and the steps to do.
Progress = Callable[[int, int], None]

# What the Hub calls this package, as a library that opens a model.
OURS = "nanochat-ternary"
# The format of this package's own directory, which others may write instead, and how the leaves are stored in it.
OWN = "nanochat"
OWN_TYPES: Mapping[str, str] = {
    "ternary": "2 bits, float16 scales",
    "int8": "int8, float16 scales",
    "float32": "float32",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
_LOGGER = logging.getLogger(__name__)
_CONFIG = "config.json"
_MAX_CONFIG_BYTES = 2**20


class ModelFiles:
    """The files of a model, a folder or a file by itself; what is read of them is read once, whoever asks.

    The model is called `name` where files show one, by default as the file or folder; `origin` is that of its bundle.
    """

    def __init__(self, path: Path, *, name: str | None = None, origin: str = "") -> None:
        self.path = path
        self.name = path.stem if name is None else name
        self.origin = origin
        self._known: dict[tuple[Callable[[Path], object], Path], object] = {}

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.path if self.path.is_dir() else self.path.parent

    @cached_property
    def names(self) -> frozenset[str]:
        """Of all files in the folder; empty if there is none."""
        if not self.folder.is_dir():
            return frozenset()
        return frozenset(entry.name for entry in os.scandir(self.folder) if not entry.is_dir())

    @cached_property
    def manifest(self) -> Manifest | None:
        """What the folder's ``nanochat.json`` says; `None` for a file, or if there is none."""
        return read_manifest(self.path) if self.path.is_dir() else None

    @cached_property
    def config(self) -> Mapping[str, object] | None:
        """Content of the folder's ``config.json``; `None` if there is none."""
        path = self.path / _CONFIG
        if not self.path.is_dir() or not exists(path):
            return None
        return parse_json(read_bytes(path, limit=_MAX_CONFIG_BYTES), str(path))

    def is_file(self, suffix: str) -> bool:
        """Whether they are one file, whose name ends so in small or capital letters."""
        return self.path.suffix.lower() == suffix and not self.path.is_dir()

    def once(self, read: Callable[[Path], T], path: Path | None = None) -> T:
        """What a function gives for a path, by default this one; it is called when that is first asked for."""
        key = (read, path or self.path)
        if key not in self._known:
            self._known[key] = read(key[1])
        known: T = self._known[key]  # type: ignore[assignment]  # by its key
        return known


@dataclass(frozen=True, kw_only=True)
class Found:
    """A model among the files of a folder.

    Parameters
    ----------
    place : str
        The file that opens it; empty for the folder itself.
    weights : set of str
        Files of its tensors, and what says which of them holds which.
    beside : set of str
        What else is read to run it.
    others : set of str
        What else belongs to it.
    """

    place: str
    weights: Set[str]
    beside: Set[str] = frozenset()
    others: Set[str] = frozenset()

    @property
    def files(self) -> Set[str]:
        """All that belongs to it."""
        return self.weights | self.beside | self.others


class Layout(ABC):
    """Which files of a folder make a model, told by their names, as the listing of a repository has them.

    Where one of them names others, `complete` adds those.

    Attributes
    ----------
    name : str
        What a user calls it, as in ``owner/name:gguf``.
    needs : str
        What must be there, for messages.
    is_graph : bool
        Whether it is a graph, which a runtime of graphs runs, and from which others must take the weights.
    """

    name: str
    needs: str
    is_graph: bool = False

    @abstractmethod
    def find(self, names: Set[str]) -> Iterator[Found]:
        """The models among the files of one folder."""

    @abstractmethod
    def preference(self, place: str, folder: str) -> tuple[int, int]:
        """Smaller is better: among all layouts, and among models of this one.

        `place` is the path of what opens the model, a file or the folder; `folder` is empty for the outermost.
        """

    @abstractmethod
    def may_hold(self, name: str) -> bool:
        """Whether weights of that path in a model's folder may belong to the model."""

    def complete(
        self,
        found: Found,
        is_there: Callable[[str], bool],
        read: Callable[[str], bytes],
        *,
        where: str,
    ) -> Found:
        """The same with the files that its own files name, whose names alone tell nothing.

        Parameters
        ----------
        is_there, read : callable
            Whether the folder has a file of a name, and its content.
        where : str
            The folder, for messages.
        """
        del is_there, read, where
        return found

    def obstacle(self, names: Set[str]) -> str | None:
        """What is there instead of a model, and what to do, if it is a known mistake."""
        del names
        return None

    def is_part(self, place: str, part: str) -> bool:
        """Whether a user who asks for `part` of a repository means the model at `place`, or one like it."""
        del place
        return part == self.name


@dataclass(frozen=True)
class NoOptions:
    """Nothing is to be chosen."""


def literals(hint: object) -> list[str]:
    """The words of a type that is a `Literal`, perhaps with `None`; none of any other.

    >>> from typing import Literal
    >>> literals(Literal["a", "b"] | None), literals(bool)
    (['a', 'b'], [])
    """
    parts = get_args(hint) or ()
    flat = [word for part in parts for word in (get_args(part) or (part,))]
    return [word for word in flat if isinstance(word, str)]


def option(default: T, *, help: str, default_help: str = "") -> T:
    """A field of a format's options, and what it is, for the command line.

    `default_help` is what is done by default, where the value itself does not say it.
    """
    value: T = field(default=default, metadata={"help": help, "default": default_help})
    return value


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a model has become in a file.

    Parameters
    ----------
    kind : str
        The format that reads it: another than the one asked for, where a folder is this package's own.
    architecture : str
        What the model is in the file, in the words of its runtime.
    """

    kind: str
    architecture: str


class Format(ABC, Generic[Options]):
    """One kind of model file.

    Attributes
    ----------
    name, aliases : str, tuple of str
        In commands, in ``nanochat.json`` and on the Hub; and what it is also called in commands.
    title : str
        For people, such as "GGUF".
    layout : Layout
        How its files are found.
    suffix : str
        Of the file that is written; empty for a folder.
    file_suffixes : tuple of str
        Of files that are a model by themselves.
    options : type or None
        A frozen dataclass of what may be chosen when it is written, each field made by `option`;
        `None` if it is only read.
    library, tag : str
        Of the Hub: the library whose users open it, and the tag that it goes by; both may be empty.
    published : Options or None
        What is chosen when it is added to a publication; `None` is the defaults.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    layout: ClassVar[Layout]
    aliases: ClassVar[tuple[str, ...]] = ()
    suffix: ClassVar[str] = ""
    file_suffixes: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[type | None] = None
    library: ClassVar[str] = OURS
    tag: ClassVar[str] = ""
    published: ClassVar[object | None] = None

    # Reading.

    @abstractmethod
    def refusal(self, files: ModelFiles) -> str | None:
        """Why files are not of this format, in a clause; `None` if they are.

        Raises
        ------
        FormatError
            If the file that says it is damaged.
        """

    @abstractmethod
    def read(self, files: ModelFiles) -> Bundle:
        """Read a model with all that is said of it, without preparing it for a backend.

        Raises
        ------
        FormatError, ConfigError, ShapeError, NumericError, ModelNotFoundError
            If a file is missing or damaged, or holds what no model may.
        """

    def licence(self, files: ModelFiles) -> str:
        """SPDX identifier of the weights' licence, or "unknown"."""
        return "unknown" if files.manifest is None else files.manifest.licence

    def config(self, files: ModelFiles) -> ModelConfig:
        """The configuration, without the weights where the files allow that."""
        return self.read(files).config if files.manifest is None else files.manifest.config

    def header_config(self, files: ModelFiles) -> ModelConfig:
        """The configuration of files of which only the headers may be there, and holes in place of tensors.

        Whoever has the tensors may know more; see `config`.
        """
        return self.config(files)

    def generation(self, files: ModelFiles) -> tuple[Mapping[str, object], str]:
        """Content of a ``generation_config.json``, or what says the same, and where it stands; both empty if nowhere.

        No weights are read for it.
        """
        found = load_generation(files.folder)
        return found, GENERATION if found else ""

    def copied_bytes(self, files: ModelFiles) -> int:
        """Least bytes of its own memory that `read` takes; 0 for what is mapped."""
        names = {name for found in self.found(files) for name in found.weights}
        return sum(
            require_file(files.folder / name) for name in names if not name.endswith(".json")
        )

    def found(self, files: ModelFiles) -> list[Found]:
        """What of the files makes the model."""
        folder = files.folder
        return [
            self.layout.complete(
                one,
                files.names.__contains__,
                lambda name: read_bytes(folder / name, limit=MAX_INDEX_BYTES),
                where=str(folder),
            )
            for one in self.layout.find(files.names)
            if files.path.is_dir() or one.place in ("", files.path.name)
        ]

    def graph(self, files: ModelFiles) -> Path | None:
        """The file that a runtime of graphs runs as it is, if there is one."""
        del files
        return None

    def require_as_written(self, files: ModelFiles, bundle: Bundle) -> None:
        """Refuse what is in the files and in no digest, where it is not what this package writes for the model."""

    def library_of(self, files: ModelFiles) -> str:
        """The library whose lines open these files."""
        del files
        return self.library

    # Writing.

    def choose(self, **chosen: object) -> Options:
        """The options with these values, and the defaults of all others."""
        if self.options is None:
            raise InputError(f"{self.title} is only read here: choose another format")
        hints = get_type_hints(self.options)
        for name, value in chosen.items():
            if name not in hints:
                raise InputError(
                    f"{self.title} has no option {name!r}: choose from {', '.join(hints) or 'none'}"
                )
            known = literals(hints[name])
            if known and value is not None and value not in known:
                raise InputError(
                    f"{name}={value!r} does not go with {self.title}: choose {', '.join(known[:-1])} or {known[-1]}"
                )
        options: Options = self.options(**chosen)
        return options

    def adapt(self, bundle: Bundle, options: Options) -> Bundle:
        """The model that a file will hold, which may be another than was given.

        Raises
        ------
        ConfigError
            If the format cannot hold the model, with the reasons.
        """
        del options
        return bundle

    def write(
        self, path: Path, bundle: Bundle, options: Options, progress: Progress | None
    ) -> Written:
        """Write a model that `adapt` gave and that has a golden record.

        Raises
        ------
        ConfigError
            If the format cannot hold the model, with the reasons.
        SaveError
            If a file cannot be written.
        """
        del path, bundle, options, progress
        raise NotImplementedError

    def run(self, path: Path, bundle: Bundle, written: Written) -> Artefact | None:
        """What its users run it in; `None` if that is this package, which proves it by digests."""
        del path, bundle, written
        return None

    def say_not_run(self, runtime: str, error: Exception) -> None:
        """Say that a stock export was not run in its runtime: what stands in it is right, but that alone is shown."""
        _LOGGER.warning(
            "%s cannot run here (%s): the export is read back and compared, but not run in it",
            runtime,
            error,
        )

    def types(self, options: Options, written: Written) -> Mapping[str, str]:
        """How "ternary", "int8", "float32" and "float16" leaves are written."""
        raise NotImplementedError

    def file_name(self, name: str, options: Options) -> str:
        """What the file or folder of a model of that name is called in a publication."""
        del options
        return f"{name}{self.suffix}" if self.suffix else self.name
