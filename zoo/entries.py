"""This file holds the entries of the catalog: what one says of a model, and the files in which they are written.

A file of ``zoo/models`` has entries by name, as ``models``, and ``shared``, the fields that all of them have unless
they say otherwise. The `shape` of both is joined, and an entry that is `like` another has that one's.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib.resources import files as package_files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

from nanochat.config import ModelConfig, config_from_dict
from nanochat.errors import SaveError
from nanochat.files import FileRecord, atomic_write, parse_json, read_bytes
from nanochat.presets import preset

__all__ = ["Entry", "Pins", "load_entries", "shape_of", "write_pins"]

# Of our own models, which come first.
_OWN = "nanochat.json"
_MAX_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model with a name that users write.

    Parameters
    ----------
    name, aliases : str, tuple of str
        A preset's until that is published; and what it may be called besides.
    description : str
        What it is and for whom, in a clause.
    licence : str
        SPDX identifier of the weights' licence, or its name.
    preset : str
        Its configuration, if it is one of ours; see `nanochat.presets`.
    ships : bool
        Whether its weights come with this package.
    repo, other_repos : str, tuple of str
        ``owner/name`` of its weights on the Hugging Face Hub, and of the same weights in other forms.
    part, why : str
        What is taken of a repository with several models, as after ``owner/name:``, and the reason.
    revision : str
        The commit of `repo` that is meant, 40 hexadecimal digits; empty if the entry is not pinned.
    files : mapping
        Size and hash of every file that belongs to the model, compared each time before one is opened.
    base, template : str
        What it was made from, and whose form of conversation it knows; empty if it only continues texts.
    thinking : {"", "on", "off"}
        Whether it is meant to think before it answers; empty if it cannot.
    sampling : mapping
        How its authors say that tokens be chosen, in the names of ``generation_config.json``.
    context : int
        Tokens that it was trained for; 0 is what its configuration says.
    shape : mapping
        The fields of its configuration that are not `nanochat.config.ModelConfig`'s own; empty if it is not known.
    tried : bool
        Whether this package has run the published weights.
    note : str
        What else one should know.
    """

    name: str
    aliases: tuple[str, ...] = ()
    description: str
    licence: str
    preset: str = ""
    ships: bool = False
    repo: str | None = None
    other_repos: tuple[str, ...] = ()
    part: str = ""
    why: str = ""
    revision: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    base: str = ""
    template: str = ""
    thinking: Literal["", "on", "off"] = ""
    sampling: Mapping[str, object] = field(default_factory=dict)
    context: int = 0
    shape: Mapping[str, object] = field(default_factory=dict)
    tried: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        # A name must not come to mean other weights.
        assert len(self.revision) in (0, 40), f"{self.name}: pin its whole commit"
        pinned = self.ships or bool(self.revision)
        assert pinned == bool(self.files), f"{self.name}: pin its commit and its files"
        assert not (self.revision and self.repo is None), f"{self.name}: a commit of no repository"

    @property
    def is_pinned(self) -> bool:
        """Whether the catalog knows which files are meant."""
        return bool(self.files)

    @property
    def bytes(self) -> int:
        """Size of its files; 0 if it is not pinned."""
        return sum(record.bytes for record in self.files.values())

    @cached_property
    def config(self) -> ModelConfig | None:
        """Its configuration; `None` if it is not known."""
        if self.preset:
            return preset(self.preset)
        return config_from_dict(self.shape) if self.shape else None

    @property
    def context_length(self) -> int:
        """Tokens that it was trained for; 0 if that is not known."""
        return self.context or (self.config.context_length if self.config is not None else 0)


@dataclass(frozen=True, kw_only=True)
class Pins:
    """What pinning finds out: commit and files, and the fields of the configuration, if the header tells them."""

    revision: str
    files: Mapping[str, FileRecord]
    shape: Mapping[str, object]


def load_entries() -> dict[str, Entry]:
    """All entries by name, those of our own models first."""
    places = [place for place in _models().iterdir() if place.name.endswith(".json")]
    written: dict[str, dict[str, object]] = {}
    for place in sorted(places, key=lambda place: (place.name != _OWN, Path(place.name).stem)):
        written |= _written(parse_json(place.read_bytes(), place.name))
    return {name: _entry(name, said, written) for name, said in written.items()}


def shape_of(config: ModelConfig) -> dict[str, object]:
    """The fields of a configuration that are not the defaults, in types that JSON has: the `shape` of an entry."""
    usual = {f.name: f.default for f in fields(ModelConfig)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in ((name, getattr(config, name)) for name in usual)
        if value != usual[name]
    }


def write_pins(name: str, pins: Pins) -> Path:
    """Write what pinning has found into the entry of that name, and return the file that holds it."""
    folder = _models()
    if not isinstance(folder, Path):
        raise SaveError(
            f"cannot write the entry of {name}: nanochat-ternary runs from an archive; run it from a checkout"
        )
    for path in sorted(folder.glob("*.json")):
        content = parse_json(read_bytes(path, limit=_MAX_BYTES), str(path))
        entries, shared = content["models"], content.get("shared", {})
        assert isinstance(entries, dict)
        assert isinstance(shared, dict)
        if name not in entries:
            continue
        entry = entries[name]
        entry["revision"] = pins.revision
        entry["files"] = {file: asdict(record) for file, record in sorted(pins.files.items())}
        if pins.shape:
            common = shared.get("shape", {})
            entry.pop("like", None)
            entry["shape"] = {
                key: value for key, value in pins.shape.items() if common.get(key) != value
            }
        text = json.dumps(content, indent=2, ensure_ascii=False)
        atomic_write(path, f"{text}\n".encode())
        return path
    raise AssertionError(name)


def _models() -> Traversable:
    """The folder of the files, which may be inside an archive that nobody has unpacked."""
    return package_files(__package__) / "models"


def _written(content: Mapping[str, object]) -> Iterator[tuple[str, dict[str, object]]]:
    """Names and fields of the entries of one file."""
    shared, entries = content.get("shared", {}), content["models"]
    assert isinstance(shared, dict)
    assert isinstance(entries, dict)
    for name, said in entries.items():
        shape = shared.get("shape", {}) | said.get("shape", {})
        yield name, {**shared, **said, **({"shape": shape} if shape else {})}


def _entry(name: str, said: Mapping[str, object], written: Mapping[str, object]) -> Entry:
    values = dict(said)
    like = values.pop("like", None)
    if like is not None:
        other = written[str(like)]
        assert isinstance(other, dict)
        values["shape"] = other["shape"]
    records = values.pop("files", {})
    assert isinstance(records, dict)
    for several in ("aliases", "other_repos"):
        if isinstance(names := values.get(several), list):
            values[several] = tuple(names)
    pinned = {file: FileRecord(**record) for file, record in records.items()}
    return Entry(name=name, files=pinned, **values)  # type: ignore[arg-type]  # tested for every entry
