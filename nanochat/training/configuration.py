"""This file holds the configuration of a run: a recipe, in TOML or JSON, with the text that it is trained on."""

import copy
import json
import logging
import sysconfig
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass as checked

from nanochat.data.prepare import prepare
from nanochat.errors import ConfigError, TrainingError
from nanochat.files import parse_json, read_bytes
from nanochat.training.checks import refusal
from nanochat.training.flat_recipe import nested
from nanochat.training.recipe import merged
from nanochat.training.values import CHECKED, Count, Share

__all__ = [
    "LENGTHS",
    "Configuration",
    "TextSettings",
    "configuration_of",
    "prepared",
    "read_configuration",
    "read_fields",
]

# How long a run is, in one of these ways.
LENGTHS = ("steps", "tokens_per_parameter", "budget")
_LOGGER = logging.getLogger(__name__)
_MAX_BYTES = 1 << 20
_FOLDER, _RECORD = "data", "text.json"


@checked(frozen=True, kw_only=True, config=CHECKED)
class TextSettings:
    """Text that a run is trained on, and its tokenizer.

    Parameters
    ----------
    files : list of str
        Files, directories and globs; "{python}" stands for the directory of Python's own library.
    vocab_size : int
        Tokens of the tokenizer that is trained on it.
    held_out : float
        Share of the files that is kept for evaluation.
    max_file_bytes : int
        Larger files of text, and records, are left out.
    column : str
        Field of a record that holds its text, in files of records.
    near_duplicates : float
        Texts that resemble an earlier one so much are left out; 0 keeps them.
    """

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    vocab_size: Count = 4096
    held_out: Share = 0.02
    max_file_bytes: Count = 1 << 30
    column: str = "text"
    near_duplicates: Share = 0.0

    @property
    def patterns(self) -> tuple[str, ...]:
        """The files, with what stands for a directory replaced by it."""
        return tuple(each.replace("{python}", sysconfig.get_path("stdlib")) for each in self.files)


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What a file says of a run; `fields` are those of the recipe, and `preset` names the shape that they change.

    `weights` is a run, a snapshot or a model with whose weights it begins.
    """

    fields: Mapping[str, object]
    preset: str | None = None
    out: Path | None = None
    weights: Path | None = None
    text: TextSettings | None = None


def read_configuration(path: Path) -> Configuration:
    """Read a configuration, or a recipe alone, from a file whose name ends in .toml or .json.

    One with a `base`, another file beside it, changes what that says.

    Raises
    ------
    ConfigError
        If it is neither, or says what no run can be.
    """
    return configuration_of(read_fields(path), str(path))


def configuration_of(found: Mapping[str, object], source: str) -> Configuration:
    """The configuration that a file of these groups would be; `source` names it in errors: see `read_configuration`."""
    fields = copy.deepcopy(dict(found))
    out, weights = _word(fields, "out", source), _word(fields, "weights", source)
    text = fields.pop("text", None)
    return Configuration(
        preset=_word(fields, "preset", source),
        out=None if out is None else Path(out),
        weights=None if weights is None else Path(weights),
        text=None if text is None else _text(text, source),
        fields=nested(fields),
    )


def prepared(text: TextSettings, run: Path) -> Path:
    """The directory of a run's tokens, which are made of its text if they are not there yet.

    Raises
    ------
    TrainingError
        If those that are there are of another text.
    """
    directory = run / _FOLDER
    # Of what was asked: a tokenizer may have found fewer tokens.
    record, asked = directory / _RECORD, {**asdict(text), "files": [*text.patterns]}
    if not directory.exists():
        _LOGGER.warning("preparing the text of %s", " ".join(text.files))
        prepare(
            text.patterns,
            directory,
            text.vocab_size,
            held_out=text.held_out,
            max_file_bytes=text.max_file_bytes,
            column=text.column,
            near_duplicates=text.near_duplicates,
            # Tokens without it would be taken for another text's.
            beside={_RECORD: json.dumps(asked).encode()},
        )
    elif (
        not record.exists()
        # Of before there were these settings.
        or {
            "column": "text",
            "near_duplicates": 0.0,
            **parse_json(read_bytes(record, limit=_MAX_BYTES), str(record)),
        }
        != asked
    ):
        raise TrainingError(
            f"{directory} was prepared with other settings than [text] has now: pass another --out, or delete it"
        )
    return directory


def read_fields(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a file says, over what its base does."""
    if path.resolve() in above:
        names = " -> ".join(each.name for each in (*above, path))
        raise ConfigError(f"{path} is its own base ({names}): take out one of these")
    found = _read(path)
    base = _word(found, "base", str(path))
    if base is None:
        return found
    if not (path.parent / base).is_file():
        raise ConfigError(
            f"{path}: base={base!r}: there is no such file in {path.parent}: correct that name"
        )
    below = read_fields(path.parent / base, (*above, path.resolve()))
    if any(name in found for name in LENGTHS):
        below = {name: value for name, value in below.items() if name not in LENGTHS}
    return cast("dict[str, Any]", merged(below, found))


def _read(path: Path) -> dict[str, Any]:
    data = read_bytes(path, limit=_MAX_BYTES)
    if path.suffix != ".toml":
        return parse_json(data, str(path))
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML ({error}): correct that line") from error


def _word(fields: dict[str, object], name: str, source: str) -> str | None:
    value = fields.pop(name, None)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{source}: {name}={value!r:.80}: write a text")
    return value


def _text(found: object, source: str) -> TextSettings:
    if not isinstance(found, Mapping):
        raise ConfigError(f"{source}: text={found!r:.80}: must be a group of settings")
    if "files" not in found:
        raise ConfigError(f"{source}: [text] names no files: write files = ['src/**/*.rs'], say")
    try:
        return TextSettings(**found)
    except ValidationError as error:
        raise ConfigError(f"{source}: [text]: {refusal(error, TextSettings)}") from error
