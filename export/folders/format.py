"""This file holds what the formats of other people's folders share, which are only read."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.export.directory import read_folder
from nanochat.export.folders.packing import Packing
from nanochat.export.folders.read import load_foreign_folder, read_foreign_config
from nanochat.export.format import Format, ModelFiles, NoOptions
from nanochat.export.layouts import SAFETENSORS

__all__ = ["FolderFormat"]


class FolderFormat(Format[NoOptions]):
    """A folder of safetensors, told by its ``config.json``.

    Attributes
    ----------
    model_types : tuple of str
        The types of models that it may hold.
    packing : type
        How its ternary matrices are stored.
    """

    layout = SAFETENSORS
    model_types: ClassVar[tuple[str, ...]]
    packing: ClassVar[type[Packing]]

    @abstractmethod
    def other_packing(self, fields: Mapping[str, object]) -> str | None:
        """Why matrices are stored otherwise, in a clause, by the content of a ``config.json``; `None` if so."""

    def refusal(self, files: ModelFiles) -> str | None:
        if files.config is None:
            return "no config.json"
        model_type = files.config.get("model_type")
        if model_type not in self.model_types:
            return (
                f"model_type is {model_type!r:.80}: of other people's models this package reads ternary ones of type "
                f"{', '.join(self.model_types)}"
            )
        return self.other_packing(files.config)

    def read(self, files: ModelFiles) -> Bundle:
        assert files.config is not None
        found = load_foreign_folder(files.path, files.config, self.packing)
        return read_folder(files, *found)

    def config(self, files: ModelFiles) -> ModelConfig:
        """See `Format.config`; what tensors are, they say, too."""
        assert files.config is not None
        return read_foreign_config(files.path, files.config, self.packing)
