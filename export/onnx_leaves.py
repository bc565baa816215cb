"""This file holds a model's weights in an ONNX graph, and the product with a linear.

Each tensor is written when an operation first asks for it, so those that only training uses are not in the file.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.export.onnx_graph import CONTRIB, Graph, Value
from nanochat.weights import Dense, Int8, Latent, Stored, Ternary

__all__ = ["BLOCK", "IntegerTensors", "Parameter", "project"]

# The one block size for which ONNX Runtime rounds activations as the numerics contract does.
BLOCK = 128

# Value of `accuracy_level` that asks for this rounding, and for integer sums.
_INT8 = 4


@dataclass(frozen=True, kw_only=True)
class IntegerTensors:
    """The inputs of `MatMulNBits`: unsigned codes (R, blocks, bytes) and float32 scales (R, blocks).

    The codes are ``code + 2**(bits - 1)``, lowest bits first, which needs no tensor of zero points.
    """

    codes: Value
    scales: Value
    bits: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Parameter:
    """One leaf of the tree, with its dotted name."""

    name: str
    leaf: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns of a linear or table; the shape of anything else."""
        match self.leaf:
            case Ternary():
                return len(self.leaf.packed), self.leaf.columns
            case Int8():
                return self.leaf.codes.shape
            case _:
                return self.leaf.values.shape

    def dense(self, graph: Graph) -> Value:
        """The numbers of a dense leaf, as a tensor of the file that the graph widens if it is float16."""
        assert isinstance(self.leaf, Dense), self.name
        numbers = graph.constant(self.name, self.leaf.values)
        return graph.cast(numbers, np.float32) if self.leaf.values.itemsize < 4 else numbers

    def dense_values(self) -> NDArray[np.float32]:
        """The numbers of a dense leaf."""
        assert isinstance(self.leaf, Dense), self.name
        return self.leaf.values.astype(np.float32, copy=False)

    def integers(self, graph: Graph) -> IntegerTensors:
        """The codes and scales of a ternary or 8-bit leaf, as tensors of the file."""
        leaf = self.leaf
        assert not isinstance(leaf, Dense | Latent), self.name
        assert leaf.activation_block == BLOCK, self.name
        rows, columns = self.shape
        blocks = ternary.num_blocks(columns, BLOCK)
        if isinstance(leaf, Ternary):
            ternary.require_legal(leaf.packed, self.name)
            # Adds 1 to each of the four pairs of bits, which hold code + 1 and at most 2: nothing is carried.
            codes, bits = leaf.packed + np.uint8(0x55), 2
        else:
            codes, bits = (leaf.codes.astype(np.int16) + 128).astype(np.uint8), 8
        scales = leaf.scales.astype(np.float32).reshape(rows, -1)
        return IntegerTensors(
            codes=graph.constant(f"{self.name}.codes", codes.reshape(rows, blocks, -1)),
            scales=graph.constant(
                f"{self.name}.scales", np.repeat(scales, blocks // scales.shape[1], axis=1)
            ),
            bits=bits,
        )


def project(graph: Graph, x: Value, linear: Parameter) -> Value:
    """Add one of the products that :meth:`nanochat.ops.Ops.project` specifies."""
    rows, columns = linear.shape
    shape = (*x.shape[:-1], rows)
    if isinstance(linear.leaf, Dense):
        weight = linear.dense(graph)
        transposed = graph.node("Transpose", weight, shape=(columns, rows), perm=[1, 0])
        return graph.node("MatMul", x, transposed, shape=shape)
    tensors = linear.integers(graph)
    return graph.node(
        "MatMulNBits",
        x,
        tensors.codes,
        tensors.scales,
        shape=shape,
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=tensors.bits,
        block_size=BLOCK,
        accuracy_level=_INT8,
    )
