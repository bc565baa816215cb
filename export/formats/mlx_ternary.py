"""This file holds other people's folders for MLX whose matrices of 2 bits are ternary, which are only read."""

from collections.abc import Mapping

from nanochat.export.folders.affine import AffineMatrices
from nanochat.export.folders.configuration import MODEL_TYPES
from nanochat.export.folders.format import FolderFormat
from nanochat.export.format import ModelFiles

__all__ = ["FORMAT"]


class MlxTernaryFormat(FolderFormat):
    """See the module; of the types of models, one has rotated inputs."""

    name = "mlx-ternary"
    title = "ternary MLX"
    model_types = MODEL_TYPES
    packing = AffineMatrices

    def other_packing(self, fields: Mapping[str, object]) -> str | None:
        if fields.get("quantization") is None:
            return "no quantization, which MLX writes of packed numbers"
        return None

    def copied_bytes(self, files: ModelFiles) -> int:
        """See `Format.copied_bytes`: tensors are mapped, but for groups whose bias is not minus the scale."""
        del files
        return 0


FORMAT = MlxTernaryFormat()
