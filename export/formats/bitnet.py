"""This file holds other people's BitNet checkpoints for transformers, which are only read."""

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.export.directory import read_folder
from nanochat.export.format import Format, ModelFiles, NoOptions
from nanochat.export.layouts import SAFETENSORS

__all__ = ["FORMAT"]

_MODEL_TYPES = ("bitnet", "llama", "qwen2", "qwen3")


class BitnetFormat(Format[NoOptions]):
    """See the module."""

    name = "bitnet"
    title = "BitNet for transformers"
    layout = SAFETENSORS

    def refusal(self, files: ModelFiles) -> str | None:
        if files.config is None:
            return "no config.json"
        model_type = files.config.get("model_type")
        if model_type not in _MODEL_TYPES:
            return (
                f"model_type is {model_type!r:.80}: of other people's models this package reads ternary ones of type "
                f"{', '.join(_MODEL_TYPES)}"
            )
        return None

    def read(self, files: ModelFiles) -> Bundle:
        from nanochat.export.folders.bitnet import load_bitnet

        assert files.config is not None
        return read_folder(files, *load_bitnet(files.path, files.config))

    def config(self, files: ModelFiles) -> ModelConfig:
        from nanochat.export.folders.bitnet import read_bitnet_config

        assert files.config is not None
        return read_bitnet_config(files.path, files.config)


FORMAT = BitnetFormat()
