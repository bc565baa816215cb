"""This file holds a model's weights as tensors of an ONNX graph, and the product with a linear in ONNX Runtime.

Each tensor is written when an operation first asks for it, so those that only training uses are not in the file.
Linears that read the same input are written as one, whose name joins theirs: ``layers.0.mixer.q+k+v``.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.blocks.plain import Plain
from nanochat.export.onnx.graph import CONTRIB, Graph, Value
from nanochat.weights import Dense, Int8, Latent, Ternary

__all__ = [
    "BLOCK",
    "IntegerTensors",
    "Parameter",
    "block_constants",
    "dense_product",
    "joined",
    "members",
    "project",
]

# The one block size for which ONNX Runtime rounds activations as the numerics contract does.
BLOCK = 128

# Value of `accuracy_level` that asks for this rounding, and for integer sums.
_INT8 = 4


@dataclass(frozen=True, kw_only=True)
class IntegerTensors:
    """Unsigned codes and their float32 scales, (R, blocks).

    The codes are ``code + 2**(bits - 1)``, lowest bits first: what ONNX Runtime's operators take without a tensor of
    zero points.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bits: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Parameter:
    """One leaf of the tree, with its dotted name."""

    name: str
    leaf: Plain

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

    def integers(self) -> IntegerTensors:
        """The codes and scales of a ternary or 8-bit leaf."""
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
            codes=codes, scales=np.repeat(scales, blocks // scales.shape[1], axis=1), bits=bits
        )


def joined(linears: Sequence[Parameter]) -> Parameter | None:
    """One linear with the rows of all, which are fields of the same node; `None` if their kinds differ."""
    if len(linears) == 1:
        return linears[0]
    leaves = [linear.leaf for linear in linears]
    nodes, fields = zip(*(linear.name.rsplit(".", 1) for linear in linears), strict=True)
    assert len(set(nodes)) == 1, nodes
    name = f"{nodes[0]}.{'+'.join(fields)}"
    packed = [leaf for leaf in leaves if isinstance(leaf, Ternary)]
    dense = [leaf.values for leaf in leaves if isinstance(leaf, Dense)]
    if len(packed) == len(leaves):
        leaf = dataclasses.replace(
            packed[0],
            packed=np.concatenate([leaf.packed for leaf in packed]),
            scales=np.concatenate([leaf.scales for leaf in packed]),
        )
        return Parameter(name=name, leaf=leaf)
    if len(dense) == len(leaves):
        return Parameter(name=name, leaf=Dense(values=np.concatenate(dense)))
    return None


def members(name: str) -> list[str]:
    """Names of the linears that `joined` has named `name`, in the order of their rows.

    Examples
    --------
    >>> members("layers.0.mixer.q+k"), members("norm")
    (['layers.0.mixer.q', 'layers.0.mixer.k'], ['norm'])
    """
    node, dot, fields = name.rpartition(".")
    return [node + dot + field for field in fields.split("+")]


def project(graph: Graph, x: Value, linear: Parameter) -> Value:
    """Add one of the products that :meth:`nanochat.ops.Ops.project` specifies, in ONNX Runtime's fast operator."""
    if isinstance(linear.leaf, Dense):
        return dense_product(graph, x, linear)
    rows, columns = linear.shape
    tensors = linear.integers()
    return graph.node(
        "MatMulNBits",
        x,
        *block_constants(graph, linear.name, tensors),
        shape=(*x.shape[:-1], rows),
        domain=CONTRIB,
        K=columns,
        N=rows,
        bits=tensors.bits,
        block_size=BLOCK,
        accuracy_level=_INT8,
    )


def block_constants(graph: Graph, name: str, tensors: IntegerTensors) -> tuple[Value, Value]:
    """Codes, (R, blocks, bytes), and scales, as `MatMulNBits` takes them."""
    codes = tensors.codes.reshape(*tensors.scales.shape, -1)
    return graph.constant(f"{name}.codes", codes), graph.constant(f"{name}.scales", tensors.scales)


def dense_product(graph: Graph, x: Value, linear: Parameter) -> Value:
    """Add the product with a dense linear, whose input is not rounded."""
    weight = graph.transpose(linear.dense(graph), 1, 0)
    return graph.node("MatMul", x, weight, shape=(*x.shape[:-1], linear.shape[0]))
