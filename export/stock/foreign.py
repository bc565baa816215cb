"""This file holds the door for other people's checkpoints: ternary models that this package did not write."""

from pathlib import Path

from nanochat.config import ModelConfig
from nanochat.errors import FormatError, ModelNotFoundError
from nanochat.export.stock.bitnet import load_bitnet
from nanochat.export.stock.bitnet_config import MODEL_TYPES
from nanochat.files import exists, parse_json, read_bytes
from nanochat.text.codec import TextCodec
from nanochat.text.library import load_tokenizer
from nanochat.weights import Stored, Weights

__all__ = ["load_foreign"]

_MAX_CONFIG_BYTES = 2**20


def load_foreign(path: Path) -> tuple[ModelConfig, Weights[Stored], TextCodec]:
    """Read a folder that Hugging Face transformers loads: a BitNet model of a type in `foreign_config.MODEL_TYPES`.

    Raises
    ------
    ModelNotFoundError
        If it holds no ``config.json``.
    FormatError, ConfigError, ShapeError, NumericError
        As for `foreign_bitnet.load_bitnet`, or if it holds another kind of model or an unknown kind of tokenizer.
    """
    file = path / "config.json"
    if not exists(file):
        raise ModelNotFoundError(f"{file}: no such file; pass a model's folder")
    fields = parse_json(read_bytes(file, limit=_MAX_CONFIG_BYTES), str(file))
    model_type = fields.get("model_type")
    if model_type not in MODEL_TYPES:
        raise FormatError(
            f"{file}: model_type is {model_type!r:.80}: of other people's models this package reads ternary ones of "
            f"type {', '.join(MODEL_TYPES)}; pass one of these"
        )
    return *load_bitnet(path, fields), load_tokenizer(path)
