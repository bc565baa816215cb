"""This file holds a small builder of ONNX graphs: values with known shapes, nodes, constants, inputs and outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["CONTRIB", "Dim", "Graph", "Value"]

# The operators of ONNX Runtime that are in no standard.
CONTRIB = "com.microsoft"

# Attention, RMSNormalization and RotaryEmbedding are standard from here on; IR 11 is the version that belongs to it.
_OPSET = 23
_IR_VERSION = 11

# A length that is known, or the name of one that is known when the graph runs.
Dim = int | str


@dataclass(frozen=True)
class Value:
    """An array that will exist when the graph runs."""

    name: str
    shape: tuple[Dim, ...]

    def size(self, axis: int) -> int:
        """Length of an axis for which it is known."""
        length = self.shape[axis]
        assert isinstance(length, int), self
        return length


class Graph:
    """A graph under construction; nodes run in the order in which they are added."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, tuple[Value, onnx.TensorProto]] = {}
        self._literals: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        # Names that outputs have in the finished graph, by the names that their nodes gave them.
        self._public: dict[str, str] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(len(tensor.raw_data) for _, tensor in self._constants.values())

    def input(self, name: str, shape: Sequence[Dim], *, dtype: type[np.generic]) -> Value:
        """Declare an argument of the graph."""
        self._inputs.append(_info(name, shape, dtype))
        return Value(name, tuple(shape))

    def output(self, value: Value, name: str) -> None:
        """Declare a float32 result of the graph, and call it `name`."""
        self._public[value.name] = name
        self._outputs.append(_info(name, value.shape, np.float32))

    def constant(self, name: str, values: NDArray[np.generic]) -> Value:
        """Return a tensor of the file; those of the same name are written once."""
        if name not in self._constants:
            tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
            self._constants[name] = Value(name, values.shape), tensor
        return self._constants[name][0]

    def literal(self, values: NDArray[np.generic]) -> Value:
        """Return a small constant without a name of its own; equal ones are written once."""
        key = values.dtype.str, values.shape, values.tobytes()
        if key not in self._literals:
            self._literals[key] = self.constant(f"literal_{len(self._literals)}", values)
        return self._literals[key]

    def indices(self, *values: int) -> Value:
        """Return an int64 vector, as shapes, axes and bounds are written."""
        return self.literal(np.array(values, np.int64))

    def node(
        self,
        op: str,
        *inputs: Value | None,
        shape: Sequence[Dim],
        domain: str = "",
        **attributes: int | float | str | list[int],
    ) -> Value:
        """Add an operator with one result, which has `shape`."""
        return self.nodes(op, *inputs, shapes=[shape], domain=domain, **attributes)[0]

    def nodes(
        self,
        op: str,
        *inputs: Value | None,
        shapes: Sequence[Sequence[Dim]],
        domain: str = "",
        **attributes: int | float | str | list[int],
    ) -> tuple[Value, ...]:
        """Add an operator with one result for each of `shapes`; an input of `None` is left out."""
        name = f"{op}_{len(self._nodes)}"
        results = tuple(Value(f"{name}.{i}", tuple(shape)) for i, shape in enumerate(shapes))
        node = helper.make_node(
            op,
            ["" if value is None else value.name for value in inputs],
            [result.name for result in results],
            name=name,
            domain=domain,
        )
        node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
        self._nodes.append(node)
        return results

    def unary(self, op: str, x: Value) -> Value:
        """Add an operator of one input, which has the shape of its result."""
        return self.node(op, x, shape=x.shape)

    def binary(self, op: str, x: Value, y: Value) -> Value:
        """Add an operator of two inputs that are broadcast to each other."""
        return self.node(op, x, y, shape=_broadcast(x.shape, y.shape))

    def cast(self, x: Value, dtype: type[np.generic]) -> Value:
        """Convert x to another element type."""
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", x, shape=x.shape, to=element)

    def unsqueeze(self, x: Value, axis: int) -> Value:
        """Insert an axis of length 1, which will be number `axis`; -1 is the last."""
        place = len(x.shape) + 1 + axis if axis < 0 else axis
        shape = (*x.shape[:place], 1, *x.shape[place:])
        return self.node("Unsqueeze", x, self.indices(axis), shape=shape)

    def matmul(self, x: Value, y: Value) -> Value:
        """Multiply the matrices of the last two axes; the others are broadcast."""
        shape = (*_broadcast(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1])
        return self.node("MatMul", x, y, shape=shape)

    def reduce(self, op: str, x: Value, axis: int) -> Value:
        """Add a reduction over one axis, which stays with length 1."""
        shape = list(x.shape)
        shape[axis] = 1
        return self.node(op, x, self.indices(axis), shape=shape)

    def rms_norm(self, x: Value, gain: Value, *, eps: float) -> Value:
        """Add the operation that :meth:`nanochat.ops.Ops.rms_norm` specifies."""
        return self.node("RMSNormalization", x, gain, shape=x.shape, axis=-1, epsilon=eps)

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        """Give x another shape; each leading dimension that is not a number must be the same as that of x."""
        sizes = [_size(x, axis, dim) for axis, dim in enumerate(shape)]
        return self.node("Reshape", x, self.indices(*sizes), shape=shape)

    def model(self, name: str, *, version: str, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """Return the finished model."""
        for node in self._nodes:
            node.input[:] = [self._public.get(value, value) for value in node.input]
            node.output[:] = [self._public.get(value, value) for value in node.output]
        tensors = [tensor for _, tensor in self._constants.values()]
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, tensors)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)],
            ir_version=_IR_VERSION,
            producer_name="nanochat-ternary",
            producer_version=version,
        )
        helper.set_model_props(model, dict(metadata))
        return model


def _broadcast(left: tuple[Dim, ...], right: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rank = max(len(left), len(right))
    ones = (1,) * rank
    pairs = list(zip((ones + left)[-rank:], (ones + right)[-rank:], strict=True))
    assert all(a == b or 1 in (a, b) for a, b in pairs), (left, right)
    return tuple(b if a == 1 else a for a, b in pairs)


def _info(name: str, shape: Sequence[Dim], dtype: type[np.generic]) -> onnx.ValueInfoProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return helper.make_tensor_value_info(name, element, list(shape))


def _size(x: Value, axis: int, dim: Dim) -> int:
    if isinstance(dim, int):
        return dim
    # In a shape, 0 stands for the input's own length of that axis, and -1 for what remains.
    return 0 if axis < len(x.shape) and x.shape[axis] == dim else -1
