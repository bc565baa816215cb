"""This file holds other people's checkpoints for transformers whose numbers are ternary, which are only read."""

from collections.abc import Mapping

from nanochat.config import ModelConfig
from nanochat.export.folders.configuration import TEXT_TYPES
from nanochat.export.folders.format import FolderFormat
from nanochat.export.folders.read import read_foreign_config
from nanochat.export.folders.unpacked import UnpackedNumbers, UnreadNumbers
from nanochat.export.format import ModelFiles

__all__ = ["FORMAT"]

# Numbers of at least 16 bits become codes of two.
_FEWER_BYTES = 8


class UnpackedFormat(FolderFormat):
    """See the module."""

    name = "unpacked"
    title = "ternary numbers for transformers"
    model_types = (*TEXT_TYPES, "qwen3_5")
    packing = UnpackedNumbers

    def other_packing(self, fields: Mapping[str, object]) -> str | None:
        for name in ("quantization", "quantization_config"):
            if fields.get(name) is not None:
                return f"{name} is {fields[name]!r:.80}, of packed numbers"
        return None

    def header_config(self, files: ModelFiles) -> ModelConfig:
        """See `Format.header_config`: tensors may be as long as the whole model."""
        assert files.config is not None
        return read_foreign_config(files.path, files.config, UnreadNumbers)

    def copied_bytes(self, files: ModelFiles) -> int:
        return super().copied_bytes(files) // _FEWER_BYTES


FORMAT = UnpackedFormat()
