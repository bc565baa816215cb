"""This file holds a small builder of ONNX graphs: values with known shapes, nodes, constants, inputs and outputs.

Nodes that nothing needs are left out of the finished graph. So an operation that fuses with the ones before it can
look back at them (`Graph.producer`) and take their inputs, whether or not another one needs their results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["CONTRIB", "Attribute", "Dim", "Graph", "Value"]

# The operators of ONNX Runtime that are in no standard.
CONTRIB = "com.microsoft"

# Version of the file format that belongs to each version of the standard, from the first that has the operators on.
_IR_VERSIONS = {23: 11, 24: 12, 25: 13}

# A length that is known, or the name of one that is known when the graph runs.
Dim = int | str

Attribute = int | float | str | list[int] | onnx.GraphProto


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


@dataclass(frozen=True)
class Producer:
    """The node that a value comes from, with its inputs; those left out are `None`."""

    op: str
    inputs: tuple[Value | None, ...]


class Graph:
    """A graph under construction, of a version of the standard; nodes run in the order in which they are added.

    The names of nodes begin with `prefix`: a graph inside another must not repeat that one's names.
    """

    def __init__(self, *, opset: int = 23, prefix: str = "") -> None:
        self._opset = opset
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._producers: dict[str, Producer] = {}
        self._constants: dict[str, tuple[Value, onnx.TensorProto]] = {}
        self._literals: dict[tuple[str, tuple[int, ...], bytes], Value] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        # Names that outputs have in the finished graph, by the names that their nodes gave them.
        self._public: dict[str, str] = {}

    @property
    def constant_names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._constants)

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
            tensor = numpy_helper.from_array(np.asarray(values, order="C"), name)
            self._constants[name] = Value(name, values.shape), tensor
        return self._constants[name][0]

    def packed_constant(self, name: str, codes: NDArray[np.uint8], shape: Sequence[int]) -> Value:
        """Return a tensor of type UINT2, from the bytes that hold four numbers each, lowest bits first."""
        if name not in self._constants:
            tensor = onnx.TensorProto(
                name=name, data_type=onnx.TensorProto.UINT2, dims=shape, raw_data=codes.tobytes()
            )
            self._constants[name] = Value(name, tuple(shape)), tensor
        return self._constants[name][0]

    def literal(self, values: NDArray[np.generic]) -> Value:
        """Return a small constant without a name of its own; equal ones are written once."""
        key = values.dtype.str, values.shape, values.tobytes()
        if key not in self._literals:
            name = f"{self._prefix}literal_{len(self._literals)}"
            self._literals[key] = self.constant(name, values)
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
        name: str = "",
        **attributes: Attribute,
    ) -> Value:
        """Add an operator with one result, which has `shape`."""
        return self.nodes(op, *inputs, shapes=[shape], domain=domain, name=name, **attributes)[0]

    def nodes(
        self,
        op: str,
        *inputs: Value | None,
        shapes: Sequence[Sequence[Dim]],
        domain: str = "",
        name: str = "",
        **attributes: Attribute,
    ) -> tuple[Value, ...]:
        """Add an operator with one result for each of `shapes`; an input of `None` is left out."""
        name = f"{self._prefix}{name or op}_{len(self._nodes)}"
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
        for result in results:
            self._producers[result.name] = Producer(op, inputs)
        return results

    def producer(self, value: Value) -> Producer | None:
        """The node that a value comes from; `None` for an input or a constant."""
        return self._producers.get(value.name)

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

    def transpose(self, x: Value, *order: int) -> Value:
        """Reorder the axes."""
        return self.node("Transpose", x, shape=[x.shape[axis] for axis in order], perm=list(order))

    def concat(self, *parts: Value, axis: int, length: Dim) -> Value:
        """Join arrays along an axis, which gets the given length."""
        shape = list(parts[0].shape)
        shape[axis] = length
        return self.node("Concat", *parts, shape=shape, axis=axis)

    def split(self, x: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
        """Cut the last axis into parts of the given sizes."""
        shapes = [(*x.shape[:-1], size) for size in sizes]
        return self.nodes("Split", x, self.indices(*sizes), shapes=shapes, axis=-1)

    def reduce(self, op: str, x: Value, axis: int, *, keep: bool = True) -> Value:
        """Add a reduction over one axis, which stays with length 1 or goes."""
        shape = list(x.shape)
        shape[axis] = 1
        if not keep:
            del shape[axis]
        return self.node(op, x, self.indices(axis), shape=shape, keepdims=int(keep))

    def rms_norm(self, x: Value, gain: Value, *, eps: float) -> Value:
        """Add the operation that :meth:`nanochat.ops.Ops.rms_norm` specifies."""
        return self.node("RMSNormalization", x, gain, shape=x.shape, axis=-1, epsilon=eps)

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        """Give x another shape; each leading dimension that is not a number must be the same as that of x."""
        sizes = [_size(x, axis, dim) for axis, dim in enumerate(shape)]
        return self.node("Reshape", x, self.indices(*sizes), shape=shape)

    def body(self, name: str) -> onnx.GraphProto:
        """Return the finished graph, as one that another graph runs."""
        nodes = self._needed()
        used = {value for node in nodes for value in _uses(node)}
        tensors = [tensor for name, (_, tensor) in self._constants.items() if name in used]
        for node in nodes:
            node.input[:] = [self._public.get(value, value) for value in node.input]
            node.output[:] = [self._public.get(value, value) for value in node.output]
        return helper.make_graph(nodes, name, self._inputs, self._outputs, tensors)

    def model(self, name: str, *, version: str, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """Return the finished model."""
        graph = self.body(name)
        domains = {"": self._opset} | {
            node.domain: 1 for node in graph.node if node.domain == CONTRIB
        }
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*domain) for domain in domains.items()],
            ir_version=_IR_VERSIONS[self._opset],
            producer_name="nanochat-ternary",
            producer_version=version,
        )
        helper.set_model_props(model, dict(metadata))
        return model

    def _needed(self) -> list[onnx.NodeProto]:
        wanted = set(self._public)
        needed = []
        for node in reversed(self._nodes):
            if wanted.intersection(node.output):
                needed.append(node)
                wanted.update(_uses(node))
        return needed[::-1]


def _uses(node: onnx.NodeProto) -> list[str]:
    """Names that a node takes, and those that the graphs inside it take from outside."""
    inner = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return [*node.input, *(name for graph in inner for n in graph.node for name in _uses(n))]


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
