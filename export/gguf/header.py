"""This file holds what the header of a GGUF file tells of a model whose tensors are not here: its configuration.

Whoever reads the tensors knows more: which of them share scales among blocks, and so might have larger ones.
"""

from pathlib import Path
from typing import Any, Literal

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError
from nanochat.export.gguf.container import GgufFile
from nanochat.export.gguf.foreign.hyperparameters import ARCHITECTURES, read_hyperparameters
from nanochat.export.gguf.foreign.matrices import FLOATS
from nanochat.export.gguf.foreign.rotations import read_rotations
from nanochat.export.gguf.metadata import is_ours, read_config
from nanochat.export.gguf.parts import read_whole
from nanochat.export.gguf.types import I2_S, PACKINGS, Q8_0

__all__ = ["header_config"]

_TABLES = {"table_format": "token_embd.weight", "head_format": "output.weight"}
# Of matrices that are numbers: the blocks of most models that are published so.
_USUAL_BLOCK = 128


def header_config(path: Path) -> ModelConfig:
    """The configuration of the model in a file of which only the header may be there, and holes in place of tensors.

    Raises
    ------
    ConfigError, FormatError
        If it is damaged, or of a model that this package does not run.
    """
    file = read_whole(path)
    if is_ours(file.metadata):
        return read_config(path, file.metadata)
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise FormatError(
            f"{path}: architecture is {architecture!r:.80}: of other people's GGUF files this package reads those of "
            f"{', '.join(ARCHITECTURES)}; pass one of these"
        )
    try:
        fields = read_hyperparameters(architecture, file)
        rotations = read_rotations(file.metadata, list(file.tensors))
        block = _block(file)
        return ModelConfig(
            **fields | _tables(fields, file),
            rotation_block=0 if rotations is None else rotations.block,
            weight_block=block,
            activation_block="token" if block == "row" else block,
        )
    except (ConfigError, FormatError) as error:
        raise type(error)(f"{path}: {error}") from error


def _block(file: GgufFile) -> int | Literal["row"]:
    """The smallest blocks of the layers' matrices."""
    kinds = {
        tensor.kind
        for name, tensor in file.tensors.items()
        if name.startswith("blk.") and len(tensor.shape) > 1
    }
    packed = kinds & PACKINGS.keys()
    if packed == {I2_S}:
        return "row"
    if packed:
        return min(kind.columns for kind in packed)
    if kinds & set(FLOATS):
        return _USUAL_BLOCK
    raise ConfigError("no matrix of its layers is of a ternary type: pass a ternary model")


def _tables(fields: dict[str, Any], file: GgufFile) -> dict[str, str]:
    """The formats of tables with a scale for every 32 columns, of which holes say that they had one for a row."""
    tables = {
        field: file.tensors[name].kind for field, name in _TABLES.items() if name in file.tensors
    }
    formats = {
        field: "int8_32" if kind == Q8_0 else fields[field] for field, kind in tables.items()
    }
    if formats.get("head_format", "table") == formats["table_format"]:
        formats["head_format"] = "table"
    return formats
