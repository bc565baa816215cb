"""This file holds what the formats for stock mlx-lm and transformers share: a folder for them, or our own directory."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from nanochat.bundle import Bundle
from nanochat.checkpoint import MODEL_TYPE
from nanochat.config import ModelConfig
from nanochat.export.directory import read_folder, write_own
from nanochat.export.format import OWN, OWN_TYPES, Format, ModelFiles, Progress, Written
from nanochat.export.layouts import SAFETENSORS
from nanochat.export.stock.architectures import Runtime, stock_architecture
from nanochat.export.transform import without_ahead
from nanochat.proof.parity import Artefact
from nanochat.weights import Stored, Weights

__all__ = ["StockFormat"]


Options = TypeVar("Options")


class StockFormat(Format[Options], Generic[Options]):
    """A folder that a stock runtime reads; ``nanochat.json`` says what the model in it is.

    Attributes
    ----------
    runtime : str
        The stock runtime.
    stock_types : mapping
        See `Format.types`.
    """

    layout = SAFETENSORS
    runtime: ClassVar[Runtime]
    stock_types: ClassVar[Mapping[str, str]]

    @abstractmethod
    def is_for_stock(self, config: ModelConfig, options: Options) -> bool:
        """Whether a model is written for the stock runtime, not as this package's directory."""

    @abstractmethod
    def load(self, path: Path, config: ModelConfig) -> tuple[ModelConfig, Weights[Stored]]:
        """Read the weights of a folder that was written for the stock runtime."""

    @abstractmethod
    def write_stock(self, path: Path, bundle: Bundle, progress: Progress | None) -> str:
        """Write a folder for the stock runtime, and return its name of the architecture."""

    @abstractmethod
    def start(self, path: Path) -> Artefact:
        """The stock runtime at work; `ModuleNotFoundError` if it is not installed."""

    def refusal(self, files: ModelFiles) -> str | None:
        """See `Format.refusal`: the runtime's own configuration does not say all of the model."""
        manifest = files.manifest
        if manifest is None or manifest.kind != self.name:
            return f"no nanochat.json that says {self.name}"
        if files.config is None:
            return "no config.json"
        own = files.config.get("model_type") == MODEL_TYPE
        return "config.json is that of this package's own directory" if own else None

    def read(self, files: ModelFiles) -> Bundle:
        assert files.manifest is not None
        return read_folder(files, *self.load(files.path, files.manifest.config))

    def adapt(self, bundle: Bundle, options: Options) -> Bundle:
        """See `Format.adapt`: heads that predict further tokens are left out, as only training uses them."""
        if not self.is_for_stock(bundle.config, options):
            return bundle
        stock_architecture(bundle.config, self.runtime)
        return without_ahead(bundle)

    def write(
        self, path: Path, bundle: Bundle, options: Options, progress: Progress | None
    ) -> Written:
        if self.is_for_stock(bundle.config, options):
            architecture = self.write_stock(path, bundle, progress)
            return Written(kind=self.name, architecture=architecture)
        return write_own(path, bundle, progress)

    def run(self, path: Path, bundle: Bundle, written: Written) -> Artefact | None:
        del bundle
        if written.kind == OWN:
            return None
        try:
            return self.start(path)
        except ModuleNotFoundError as error:
            self.say_not_run(self.runtime, error)
            return None

    def types(self, options: Options, written: Written) -> Mapping[str, str]:
        del options
        return OWN_TYPES if written.kind == OWN else self.stock_types
