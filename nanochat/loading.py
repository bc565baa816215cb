"""This file holds the way from files to the parts of a model, whichever format they have.

A path is a folder, or a ``.gguf`` or ``.onnx`` file. A folder is what its ``nanochat.json`` says, if it has one; else
this package's model directory, an exported ONNX folder, or another program's checkpoint.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from nanochat import backends, checkpoint
from nanochat.config import ModelConfig
from nanochat.errors import FormatError
from nanochat.export.source import Source
from nanochat.files import exists, own_file, parse_json, read_bytes, require_file
from nanochat.init import freeze
from nanochat.proof.golden import Golden
from nanochat.proof.manifest import Manifest, read_manifest
from nanochat.tensors import MAX_HEADER_BYTES
from nanochat.text.codec import TextCodec
from nanochat.text.library import load_tokenizer
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import Stored, Weights

__all__ = [
    "Parts",
    "choose_backend",
    "copied_bytes",
    "default_generation",
    "format_of",
    "load_any_config",
    "load_golden",
    "load_licence",
    "load_parts",
    "load_source",
    "onnx_file",
    "opened_files",
]

_LOGGER = logging.getLogger(__name__)
_CARD = "README.md"
_MAX_CARD_BYTES = 2**20
_ONNX = "model.onnx"
_TENSORS, _INDEX = "model.safetensors", "model.safetensors.index.json"
# What is read beside the tensors, where it is there.
_BESIDE = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    _INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a model is made of.

    Parameters
    ----------
    config, weights, tokenizer
        As for `nanochat.lm.Model`.
    generation : mapping
        Content of ``generation_config.json``; `default_generation` if there is none.
    card : bytes
        Content of ``README.md``; empty if there is none.
    """

    config: ModelConfig
    weights: Weights[Stored]
    tokenizer: TextCodec
    generation: Mapping[str, object]
    card: bytes = b""


# Exporters are imported when a file asks for them: most need packages that a model directory does not.


def load_parts(path: Path) -> Parts:
    """Read a model without preparing it for a backend.

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
    kind = format_of(path)
    if kind == "gguf":
        from nanochat.export.gguf.write import load_gguf

        config, weights, tokenizer = load_gguf(path)
        generation = default_generation(tokenizer)
        return Parts(config=config, weights=weights, tokenizer=tokenizer, generation=generation)
    file = onnx_file(path)
    if file is not None:
        from nanochat.export.onnx.read import load_onnx

        config, weights = load_onnx(file)
        return _in_folder(file.parent, config, weights)
    manifest = read_manifest(path)
    if manifest is not None and kind in ("mlx", "transformers"):
        return _load_stock(path, manifest)
    if kind == "foreign":
        from nanochat.export.stock.foreign import load_foreign

        config, weights, tokenizer = load_foreign(path)
        return Parts(
            config=config,
            weights=weights,
            tokenizer=tokenizer,
            generation=checkpoint.load_generation(path) or default_generation(tokenizer),
            card=_card(path),
        )
    return _in_folder(path, *checkpoint.load(path))


def load_any_config(path: Path) -> ModelConfig:
    """The configuration of a model, without its weights where its files allow that.

    Raises
    ------
    NanochatError
        As for `load_parts`.
    """
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is not None:
        return manifest.config
    if path.is_dir() and onnx_file(path) is None and checkpoint.is_ours(path):
        return checkpoint.load_config(path)
    return load_parts(path).config


def copied_bytes(path: Path) -> int:
    """Least bytes of its own memory that `load_parts` takes: 0 for a model directory, which is mapped.

    Raises
    ------
    FormatError
        As for `load_parts`.
    """
    return 0 if format_of(path) == "nanochat" else sum(map(require_file, _tensor_files(path)))


def format_of(path: Path) -> str:
    """How `load_parts` reads what is at `path`: as "gguf", "onnx", "mlx", "transformers", "nanochat" or "foreign".

    "transformers" is an export of this package, and "foreign" is anything that others have made.

    Raises
    ------
    FormatError
        If the file that says it is damaged.
    """
    if path.suffix == ".gguf":
        return "gguf"
    if onnx_file(path) is not None:
        return "onnx"
    manifest = read_manifest(path)
    if manifest is not None:
        return manifest.kind if manifest.kind in ("mlx", "transformers") else "nanochat"
    return "nanochat" if checkpoint.is_ours(path) else "foreign"


def opened_files(path: Path) -> list[Path]:
    """The files that `load_parts` opens for the model in a folder, but for the card.

    Raises
    ------
    FormatError
        If the file that says it is damaged.
    """
    return [*_tensor_files(path), *(path / name for name in _BESIDE if exists(path / name))]


def load_golden(path: Path) -> Golden | None:
    """The golden record of a model's files; `None` if they have none.

    Raises
    ------
    FormatError
        If it is damaged.
    """
    if path.suffix == ".gguf":
        from nanochat.export.gguf.write import gguf_golden

        return gguf_golden(path)
    if path.suffix == ".onnx":
        from nanochat.export.onnx.read import onnx_golden

        return onnx_golden(path)
    manifest = read_manifest(path)
    return None if manifest is None else manifest.golden


def load_licence(path: Path) -> str | None:
    """The licence that an export says its weights have; `None` if it says none.

    Raises
    ------
    FormatError
        If the file that says it is damaged.
    """
    if path.suffix == ".gguf":
        from nanochat.export.gguf.write import gguf_licence

        return gguf_licence(path)
    manifest = read_manifest(path if path.is_dir() else path.parent)
    return None if manifest is None else manifest.licence


def load_source(path: Path, *, name: str, licence: str | None = None) -> Source:
    """Read a model with all that is said of it, without preparing it for a backend.

    Parameters
    ----------
    name : str
        What it is called where files show a name.
    licence : str, optional
        SPDX identifier of the weights' licence; absent is what the model's files say, or "unknown".

    Raises
    ------
    NanochatError
        As for `load_parts`.
    """
    parts = load_parts(path)
    return Source(
        name=name,
        config=parts.config,
        weights=freeze(parts.weights),
        tokenizer=parts.tokenizer,
        generation=parts.generation,
        licence=licence or load_licence(path) or "unknown",
        card=parts.card,
    )


def default_generation(tokenizer: TextCodec) -> dict[str, object]:
    """What ``generation_config.json`` says of a model for which nothing else was chosen."""
    ends = sorted(tokenizer.stop_ids)
    if isinstance(tokenizer, Tokenizer):
        # All of its special tokens end a text; these are those that a model is trained to write.
        ends = [tokenizer.eos, tokenizer.end]
    tokens = {"bos_token_id": tokenizer.bos, "eos_token_id": ends, "pad_token_id": tokenizer.pad}
    known = {key: token for key, token in tokens.items() if token is not None}
    return {**known, "do_sample": False}


def choose_backend(path: Path, name: str = "auto") -> tuple[str, str]:
    """The backend that runs the model at `path`, and the reason.

    Parameters
    ----------
    name : str
        As for `nanochat.backends.choose`, but where nothing is named, a graph is run as it is, by "onnx". Any other
        backend runs the weights in it.

    Raises
    ------
    BackendError
        If it is unknown or cannot run here.
    """
    if backends.wanted(name) == "auto" and onnx_file(path) is not None:
        chosen, _ = backends.choose("onnx")
        return chosen, "the model is a graph"
    return backends.choose(name)


def onnx_file(path: Path) -> Path | None:
    """The ``.onnx`` file that a path is, or that the model of a folder consists of."""
    if path.suffix == ".onnx" and not path.is_dir():
        return path
    if exists(path / _ONNX) and not exists(path / _TENSORS):
        return path / _ONNX
    return None


def _tensor_files(path: Path) -> list[Path]:
    """The files that hold a model's tensors."""
    if path.suffix == ".gguf":
        return [path]
    file = onnx_file(path)
    if file is not None:
        beside = file.with_name(f"{file.name}.data")
        # A link to nowhere is there, too: it is for whoever reads it to refuse.
        return [file, beside] if exists(beside) or beside.is_symlink() else [file]
    index = path / _INDEX
    if not exists(index):
        return [path / _TENSORS]
    homes = parse_json(read_bytes(index, limit=MAX_HEADER_BYTES), str(index)).get("weight_map")
    # Odd names are refused by whoever opens the files.
    names = homes.values() if isinstance(homes, dict) else ()
    return [path / name for name in sorted({PurePath(str(name)).name for name in names})]


def _load_stock(path: Path, manifest: Manifest) -> Parts:
    """Read an export for another runtime back; its own configuration is in ``nanochat.json``."""
    if manifest.kind == "mlx":
        from nanochat.export.stock.mlx import load_mlx

        return _in_folder(path, *load_mlx(path, manifest.config))
    from nanochat.export.stock.transformers import load_transformers

    return _in_folder(path, *load_transformers(path, manifest.config))


def _in_folder(path: Path, config: ModelConfig, weights: Weights[Stored]) -> Parts:
    if not exists(path / "tokenizer.json"):
        raise FormatError(
            f"{path}: no tokenizer.json beside the model; copy the one that it was exported with to there"
        )
    tokenizer = load_tokenizer(path)
    return Parts(
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        generation=checkpoint.load_generation(path) or default_generation(tokenizer),
        card=_card(path),
    )


def _card(path: Path) -> bytes:
    if not exists(path / _CARD):
        return b""
    file = own_file(path, _CARD)
    if file is None:
        # It would go to the Hub with the model.
        _LOGGER.warning("%s leads out of the model's directory, and is not read", path / _CARD)
        return b""
    return read_bytes(file, limit=_MAX_CARD_BYTES)
