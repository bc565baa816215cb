"""This file holds MLX: a folder for stock mlx-lm, or this package's own directory where that cannot run the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.export.format import Progress, option
from nanochat.export.stock.architectures import obstacles
from nanochat.export.stock.format import StockFormat
from nanochat.proof.parity import Artefact
from nanochat.weights import Stored, Weights

__all__ = ["FORMAT", "MlxOptions"]


@dataclass(frozen=True, kw_only=True)
class MlxOptions:
    """What may be chosen of an MLX folder."""

    runtime: Literal["auto", "mlx-lm", "nanochat"] = option(
        "auto", help="who must run it, unmodified", default_help="auto, mlx-lm where it can"
    )


class MlxFormat(StockFormat[MlxOptions]):
    """See the module."""

    name = library = tag = "mlx"
    title = "MLX"
    options = MlxOptions
    published = MlxOptions(runtime="mlx-lm")
    runtime = "mlx-lm"
    stock_types: ClassVar = {
        "ternary": "affine, 2 bits",
        "int8": "affine, 8 bits",
        "float32": "float32",
        "float16": "float16",
        "bfloat16": "bfloat16",
    }

    def is_for_stock(self, config: ModelConfig, options: MlxOptions) -> bool:
        if options.runtime == "auto":
            return not obstacles(config, self.runtime)
        return options.runtime == self.runtime

    def load(self, path: Path, config: ModelConfig) -> tuple[ModelConfig, Weights[Stored]]:
        from nanochat.export.stock.mlx import load_mlx

        return load_mlx(path, config)

    def write_stock(self, path: Path, bundle: Bundle, progress: Progress | None) -> str:
        from nanochat.export.stock.mlx import write_mlx

        return write_mlx(path, bundle, progress=progress)

    def start(self, path: Path) -> Artefact:
        from nanochat.export.stock.mlx_run import MlxLm

        return MlxLm(path)


FORMAT = MlxFormat()
