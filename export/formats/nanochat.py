"""This file holds this package's own format: the model directory."""

from collections.abc import Mapping
from pathlib import Path

from nanochat import checkpoint
from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import ModelNotFoundError
from nanochat.export.directory import read_folder, write_own
from nanochat.export.format import OWN, OWN_TYPES, Format, ModelFiles, NoOptions, Progress, Written
from nanochat.export.layouts import SAFETENSORS

__all__ = ["FORMAT"]

_CONFIG = "config.json"


class NanochatFormat(Format[NoOptions]):
    """See the module: exact, and mapped, not read."""

    name = OWN
    title = "safetensors, ternary"
    layout = SAFETENSORS
    options = NoOptions

    def refusal(self, files: ModelFiles) -> str | None:
        if files.config is None:
            return f"no {_CONFIG}"
        model_type = files.config.get("model_type")
        if model_type != checkpoint.MODEL_TYPE:
            return f'{_CONFIG} says model_type {model_type!r:.80}, not "{checkpoint.MODEL_TYPE}"'
        return None

    def read(self, files: ModelFiles) -> Bundle:
        config = self.config(files)
        return read_folder(files, config, checkpoint.load_weights(files.path, config))

    def config(self, files: ModelFiles) -> ModelConfig:
        path = files.path / _CONFIG
        if files.config is None:
            raise ModelNotFoundError(
                f"{path}: no such file; pass a model directory, which holds {_CONFIG}, or a model's name"
            )
        return checkpoint.parse_config(files.config, path)

    def copied_bytes(self, files: ModelFiles) -> int:
        """See `Format.copied_bytes`: its tensors are mapped."""
        del files
        return 0

    def write(
        self, path: Path, bundle: Bundle, options: NoOptions, progress: Progress | None
    ) -> Written:
        del options
        return write_own(path, bundle, progress)

    def types(self, options: NoOptions, written: Written) -> Mapping[str, str]:
        del options, written
        return OWN_TYPES


FORMAT = NanochatFormat()
