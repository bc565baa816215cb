"""This file holds other people's BitNet checkpoints for transformers, which are only read."""

from collections.abc import Mapping

from nanochat.export.folders.bitnet import BitnetMatrices
from nanochat.export.folders.format import FolderFormat

__all__ = ["FORMAT"]


class BitnetFormat(FolderFormat):
    """See the module."""

    name = "bitnet"
    title = "BitNet for transformers"
    model_types = ("bitnet", "llama", "qwen2", "qwen3")
    packing = BitnetMatrices

    def other_packing(self, fields: Mapping[str, object]) -> str | None:
        said = fields.get("quantization_config")
        if isinstance(said, dict) and said.get("quant_method") == "bitnet":
            return None
        return (
            f'quantization_config is {said!r:.80}: must have "quant_method": "bitnet", without which the linears are '
            "not ternary"
        )


FORMAT = BitnetFormat()
