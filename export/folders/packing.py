"""This file holds what a reader of folders asks of the way in which ternary matrices are stored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from nanochat.export.folders.tensors import FolderTensors
from nanochat.export.places import Index
from nanochat.weights import Spec, Ternary, TernaryBlocks

__all__ = ["Packing"]


class Packing(ABC):
    """The ternary matrices of a folder, by the names of their modules.

    Attributes
    ----------
    companions : tuple of str
        Tensors of a module that may stand beside its ``weight``.
    is_mlx : bool
        Whether the folder is one of MLX, which keeps some numbers otherwise than transformers.
    """

    companions: ClassVar[tuple[str, ...]] = ()
    is_mlx: ClassVar[bool] = False

    def __init__(self, tensors: FolderTensors, fields: Mapping[str, object]) -> None:
        self.tensors = tensors
        del fields

    @abstractmethod
    def is_ternary(self, module: str, shape: tuple[int, int]) -> bool:
        """Whether a table or a gate, which need not be, is ternary."""

    @abstractmethod
    def blocks(self, modules: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        """The fields of our configuration for the blocks of matrices of such shapes, all of which are ternary."""

    @abstractmethod
    def leaf(
        self, module: str, shape: tuple[int, int], spec: Spec, rows: Index | None
    ) -> Ternary | TernaryBlocks:
        """These rows, or all, of the matrix of a module that has that shape, as `spec` asks for them."""

    def notes(self) -> list[str]:
        """What has been read otherwise than it is stored, when all leaves are made."""
        return []
