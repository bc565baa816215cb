"""This file holds HF: this package's own directory, which the Hub is given, or dense weights for transformers."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.export.format import Progress, option
from nanochat.export.stock.format import StockFormat
from nanochat.proof.parity import Artefact
from nanochat.weights import Stored, Weights

__all__ = ["FORMAT", "TransformersOptions"]


@dataclass(frozen=True, kw_only=True)
class TransformersOptions:
    """What may be chosen of a folder for the Hub."""

    runtime: Literal["auto", "transformers", "nanochat"] = option(
        "auto", help="who must run it, unmodified", default_help="auto, which is nanochat"
    )


class TransformersFormat(StockFormat[TransformersOptions]):
    """See the module."""

    name = library = tag = title = "transformers"
    aliases = ("hf",)
    options = TransformersOptions
    published = TransformersOptions(runtime="transformers")
    runtime = "transformers"
    stock_types: ClassVar = {
        "ternary": "float16",
        "int8": "float32",
        "float32": "float32",
        "float16": "float16",
    }

    def is_for_stock(self, config: ModelConfig, options: TransformersOptions) -> bool:
        del config
        return options.runtime == self.runtime

    def load(self, path: Path, config: ModelConfig) -> tuple[ModelConfig, Weights[Stored]]:
        from nanochat.export.stock.transformers import load_transformers

        return load_transformers(path, config)

    def write_stock(self, path: Path, bundle: Bundle, progress: Progress | None) -> str:
        from nanochat.export.stock.transformers import write_transformers

        return write_transformers(path, bundle, progress=progress)

    def start(self, path: Path) -> Artefact:
        from nanochat.export.stock.transformers_run import Transformers

        return Transformers(path)


FORMAT = TransformersFormat()
