"""This file holds the forms of a graph for runtimes whose `MatMulNBits` does not compute the numerics contract.

ONNX Runtime's own kernel for CPUs rounds activations as the contract does. In a browser the same operator multiplies
with them as they are, or rounds them in other blocks; but multiplied in float32 with numbers that are rounded already,
any kernel computes the model's product. Both forms round by standard operators, and refer to the tensors of the graph
that they are made from: the three stay in one folder, and the weights are on disk once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nanochat.export.onnx_leaves import BLOCK

__all__ = ["move_tensors", "write_packed_form", "write_widened_form"]

# The first with UINT2 for DequantizeLinear, and the version of the file format that has it.
_OPSET, _IR_VERSION = 25, 13
# A block whose magnitudes are all below this counts as zeros; divided by it, 127 is finite.
_SMALLEST = 2.0**-119
# Smaller tensors stay in the graph: shapes are among them, and a graph's are found without its file of tensors.
_SMALLEST_BYTES = 1024


def move_tensors(path: Path) -> None:
    """Move the tensors of the graph at `path` to a new file beside it, ``<path>.data``."""
    model = onnx.load(path)
    path.unlink()
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=_SMALLEST_BYTES,
    )


def write_packed_form(path: Path, new: Path) -> None:
    """Write a graph that multiplies the codes, as they are in memory, with rounded activations."""
    _write(path, new, _packed_product)


def write_widened_form(path: Path, new: Path) -> None:
    """Write a graph that multiplies float32 weights, to which it widens the codes, with rounded activations.

    In ONNX Runtime, the session option ``session.disable_quant_qdq`` widens them once, when the graph is loaded.
    """
    _write(path, new, _widened_product)


@dataclass
class _Form:
    """A graph in the making: the tensors of the old one, by name, and what is new."""

    old: dict[str, TensorProto]
    nodes: list[NodeProto] = field(default_factory=list)
    new: dict[str, TensorProto] = field(default_factory=dict)
    # Names of what was made from a value or a tensor, by its name: several products may have the same.
    made: dict[str, str] = field(default_factory=dict)

    def add(self, op: str, *inputs: str, **attributes: int | list[int]) -> str:
        """Add a node with one result, and return the result's name."""
        name = f"form.{len(self.nodes)}"
        node = helper.make_node(op, inputs, [name], name=name)
        node.attribute.extend(helper.make_attribute(*item) for item in attributes.items())
        self.nodes.append(node)
        return name

    def constant(self, values: NDArray[np.generic]) -> str:
        """Add a small tensor, and return its name."""
        name = f"form.{values.dtype}.{values.tolist()}"
        self.new[name] = numpy_helper.from_array(values, name)
        return name

    def view(self, name: str, type_: int, shape: list[int]) -> str:
        """Add the bytes of an old tensor as another one."""
        view = TensorProto()
        view.CopyFrom(self.old[name])
        view.name, view.data_type, view.dims[:] = f"{name}.view", type_, shape
        self.new[view.name] = view
        return view.name


def _write(path: Path, new: Path, product: Callable[[_Form, NodeProto], None]) -> None:
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    form = _Form({tensor.name: tensor for tensor in graph.initializer})
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            # No zero points, which other bytes would be, and no bias.
            assert len(node.input) == 3, node.name
            product(form, node)
        else:
            form.nodes.append(node)
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in form.nodes]
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in [*graph.initializer, *form.new.values()] if tensor.name in used]
    kept = [TensorProto.FromString(tensor.SerializeToString()) for tensor in tensors]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = max(opset.version, _OPSET)
    new.write_bytes(model.SerializeToString())


def _packed_product(form: _Form, node: NodeProto) -> None:
    packed = NodeProto()
    packed.CopyFrom(node)
    packed.input[0] = _rounded(form, node.input[0])
    del packed.attribute[:]
    packed.attribute.extend(a for a in node.attribute if a.name != "accuracy_level")
    form.nodes.append(packed)


def _widened_product(form: _Form, node: NodeProto) -> None:
    x, codes, scales = node.input
    sizes = {a.name: a.i for a in node.attribute}
    if codes not in form.made:
        form.made[codes] = _widened(form, codes, scales, sizes["N"], sizes["K"], sizes["bits"])
    inputs = [_rounded(form, x), form.made[codes]]
    form.nodes.append(helper.make_node("MatMul", inputs, node.output, name=node.name))


def _rounded(form: _Form, x: str) -> str:
    """``rint(x * (127 / max |x|)) * (max |x| / 127)`` in each block of x."""
    if x not in form.made:
        largest_code = form.constant(np.array(127, np.float32))
        blocks = form.add("Reshape", x, form.constant(np.array([-1, BLOCK])))
        largest = form.add("ReduceMax", form.add("Abs", blocks), form.constant(np.array([1])))
        above = form.add("Max", largest, form.constant(np.array(_SMALLEST, np.float32)))
        codes = form.add("Round", form.add("Mul", blocks, form.add("Div", largest_code, above)))
        values = form.add("Mul", codes, form.add("Div", largest, largest_code))
        form.made[x] = form.add("Reshape", values, form.add("Shape", x))
    return form.made[x]


def _widened(form: _Form, codes: str, scales: str, rows: int, columns: int, bits: int) -> str:
    """The weights as a float32 matrix, (columns, rows)."""
    blocks = columns // BLOCK
    packed = TensorProto.UINT2 if bits == 2 else TensorProto.UINT8
    zero = TensorProto(name=f"{codes}.zero", data_type=packed, dims=[rows, blocks])
    # The code of 0 is half of the codes' range; four of 2 bits are in a byte.
    byte, number = (0xAA, math.ceil(rows * blocks / 4)) if bits == 2 else (0x80, rows * blocks)
    zero.raw_data = bytes([byte]) * number
    form.new[zero.name] = zero
    inputs = [
        form.view(codes, packed, [rows, columns]),
        form.view(scales, TensorProto.FLOAT, [rows, blocks]),
        zero.name,
    ]
    weights = form.add("DequantizeLinear", *inputs, axis=1, block_size=BLOCK)
    return form.add("Transpose", weights, perm=[1, 0])
