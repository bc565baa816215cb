"""This file holds ``nanochat.json``: what a folder's files must be, and what the model in them must compute.

It stands in every exported folder, and may stand in a model directory. A single file carries its golden record inside.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from nanochat.bundle import CARD, Bundle, Golden, golden_from_json
from nanochat.config import ModelConfig, config_from_dict, config_to_dict
from nanochat.errors import ConfigError, FormatError
from nanochat.files import (
    FileRecord,
    exists,
    parse_json,
    read_bytes,
    record_file,
    require_as_recorded,
)

__all__ = ["NAME", "Manifest", "check_files", "read_manifest", "write_manifest"]

NAME = "nanochat.json"
_FORMAT = 1
_MAX_BYTES = 64 * 2**20
# The card is edited after an export; reports are written after the hashes.
_FREE = frozenset({NAME, CARD, "parity.json"})


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What ``nanochat.json`` says.

    `kind` is the format of the folder, such as "mlx", and `config` what the model in it is, whatever its files call it.
    `files` are all but the card, by their paths in the folder, with slashes.
    """

    name: str
    licence: str
    kind: str
    config: ModelConfig
    files: Mapping[str, FileRecord]
    golden: Golden


def write_manifest(folder: Path, bundle: Bundle, *, kind: str) -> None:
    """Write ``nanochat.json`` for the files that are in `folder` now, of a model with a golden record."""
    assert bundle.golden is not None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    content = {
        "format": _FORMAT,
        "name": bundle.name,
        "licence": bundle.licence,
        "kind": kind,
        "config": config_to_dict(bundle.config),
        "files": {
            name: asdict(record_file(path))
            for name, path in zip(names, files, strict=True)
            if name not in _FREE
        },
        "golden": bundle.golden.to_dict(),
    }
    (folder / NAME).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest | None:
    """What ``nanochat.json`` in `folder` says; `None` if there is none."""
    path = folder / NAME
    if not exists(path):
        return None
    fields = parse_json(read_bytes(path, limit=_MAX_BYTES), str(path))
    if fields.get("format") != _FORMAT:
        raise FormatError(
            f"{path}: format is {fields.get('format')!r:.40}, must be {_FORMAT}; upgrade nanochat-ternary, or export "
            "the model again"
        )
    match fields:
        case {
            "name": str(name),
            "licence": str(licence),
            "kind": str(kind),
            "config": dict(config),
            "files": dict(files),
            "golden": dict(golden),
        }:
            pass
        case _:
            raise FormatError(f"{path}: a field is missing or of another type; fetch it again")
    try:
        model_config = config_from_dict(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return Manifest(
        name=name,
        licence=licence,
        kind=kind,
        config=model_config,
        files={file: _file_record(path, file, value) for file, value in files.items()},
        golden=golden_from_json(golden, str(path)),
    )


def check_files(folder: Path, manifest: Manifest) -> None:
    """Refuse a file that is missing or not as it was written; others are not looked at."""
    for name, record in manifest.files.items():
        require_as_recorded(folder / name, record, by=NAME)


def _file_record(path: Path, name: str, value: object) -> FileRecord:
    # A name may not lead out of the folder.
    parts = PurePosixPath(name).parts
    if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name:
        raise FormatError(
            f"{path}: names the file {name!r:.80}, which is not in the folder; do not use it"
        )
    match value:
        case {"bytes": int(size), "sha256": str(sha256)} if size >= 0 and len(sha256) == 64:
            return FileRecord(bytes=size, sha256=sha256)
    raise FormatError(
        f"{path}: {name!r:.80} has {value!r:.80} for a size and a SHA-256; fetch it again"
    )
