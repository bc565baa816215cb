"""This file holds ternary matrices that are stored as numbers of 16 or 32 bits, and nothing says that they are."""

import math
from collections.abc import Mapping
from typing import Any

from nanochat.blocks.numbers import TernaryNumbers, find_ternary
from nanochat.errors import NumericError
from nanochat.export.folders.packing import Packing
from nanochat.export.folders.tensors import FLOATS
from nanochat.export.places import Index, row_slice
from nanochat.weights import Spec, Ternary

__all__ = ["UnpackedNumbers", "UnreadNumbers"]

# Columns that share a scale, from wide to narrow.
_BLOCKS = (256, 128, 64)
# Rows of a table that are looked at before all are.
_SAMPLED_ROWS = 64


class UnpackedNumbers(Packing):
    """See the module. Each matrix is read once, and kept until all of its leaves are made."""

    _found: dict[str, TernaryNumbers]

    def __init__(self, *told: Any) -> None:
        super().__init__(*told)
        self._found = {}

    def is_ternary(self, module: str, shape: tuple[int, int]) -> bool:
        key = f"{module}.weight"
        block = _narrowest(shape[1])
        sample = self.tensors.take(key, shape, *FLOATS)[:_SAMPLED_ROWS]
        try:
            # Zeros alone say nothing; of a file that is fetched in part, they stand for numbers.
            if not find_ternary(sample, block=block, name=key).scales.any():
                return False
            self._find(module, shape)
        except NumericError:
            return False
        return True

    def blocks(self, modules: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
        """The widest of 256, 128 and 64 columns that share a scale everywhere, or else whole rows."""
        divisor = math.gcd(*(columns for _, columns in modules.values()))
        if divisor % _BLOCKS[-1]:
            return {"weight_block": "row", "activation_block": "token"}
        block = next(
            block
            for block in _BLOCKS
            if divisor % block == 0
            and all(self._is_shared(module, shape, block) for module, shape in modules.items())
        )
        return {"weight_block": block, "activation_block": block}

    def leaf(self, module: str, shape: tuple[int, int], spec: Spec, rows: Index | None) -> Ternary:
        found = self._find(module, shape)
        stored = spec.shape[1] // found.scales.shape[1]
        part = row_slice(rows)
        if spec.weight_block % stored:
            raise AssertionError
        count = spec.weight_block // stored
        own = TernaryNumbers(packed=found.packed[part], scales=found.scales[part])
        if not own.is_shared(count):
            # Of whole rows, whose blocks of 64 have scales of their own.
            values = self.tensors.take(f"{module}.weight", shape, *FLOATS)
            find_ternary(values, block=spec.weight_block, name=f"{module}.weight")
        return Ternary(
            packed=own.packed,
            scales=own.shared_scales(count),
            columns=spec.shape[1],
            activation_block=spec.activation_block,
        )

    def _is_shared(self, module: str, shape: tuple[int, int], block: int) -> bool:
        """Whether so many columns have one magnitude everywhere in a matrix."""
        return self._find(module, shape).is_shared(block // _BLOCKS[-1])

    def _find(self, module: str, shape: tuple[int, int]) -> TernaryNumbers:
        if module not in self._found:
            key = f"{module}.weight"
            values = self.tensors.take(key, shape, *FLOATS)
            self._found[module] = find_ternary(values, block=_narrowest(shape[1]), name=key)
        return self._found[module]


class UnreadNumbers(UnpackedNumbers):
    """The same of files whose numbers are not here: tables are not ternary, and blocks as wide as they may be."""

    def is_ternary(self, module: str, shape: tuple[int, int]) -> bool:
        del module, shape
        return False

    def _is_shared(self, module: str, shape: tuple[int, int], block: int) -> bool:
        del module, shape, block
        return True


def _narrowest(columns: int) -> int:
    return _BLOCKS[-1] if columns % _BLOCKS[-1] == 0 else columns
