"""This file holds the forms of a graph for runtimes whose `MatMulNBits` does not compute the numerics contract.

ONNX Runtime's own kernel for CPUs rounds activations as the contract does. In a browser the same operator multiplies
with them as they are, or rounds them in other blocks; but multiplied in float32 with numbers that are rounded already,
any kernel computes the model's product. Both forms are made from the graph of standard operators, which rounds by
itself, and refer to the tensors of the graph for ONNX Runtime: the three stay in one folder, and the weights are on
disk once.
"""

import shutil
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from nanochat.bundle import Bundle
from nanochat.export.onnx.digest import seal
from nanochat.export.onnx.graph import CONTRIB
from nanochat.export.onnx.leaves import BLOCK
from nanochat.export.onnx.write import onnx_model

__all__ = ["move_tensors", "packed_form", "write_packed_form", "write_widened_form"]

# Smaller tensors stay in the graph: shapes are among them, and a graph's are found without its file of tensors.
_SMALLEST_BYTES = 1024


def move_tensors(path: Path) -> None:
    """Move the tensors of the graph at `path` to a new file beside it, ``<path>.data``."""
    model = onnx.load(path)
    data = path.with_name(f"{path.name}.data")
    path.unlink()
    data.unlink(missing_ok=True)
    onnx.save_model(
        model, path, save_as_external_data=True, location=data.name, size_threshold=_SMALLEST_BYTES
    )
    # The library makes it private to its owner.
    shutil.copymode(path, data)


def write_widened_form(path: Path, new: Path, bundle: Bundle) -> None:
    """Write a graph that multiplies float32 weights, to which it widens the codes, with rounded activations.

    In ONNX Runtime, the session option ``session.disable_quant_qdq`` widens them once, when the graph is loaded. At
    `path` is the same model for ONNX Runtime, from `move_tensors`.
    """
    model = onnx_model(bundle, target="standard")
    _share(model, path)
    new.write_bytes(model.SerializeToString())


def write_packed_form(path: Path, new: Path, bundle: Bundle) -> None:
    """Write a graph that multiplies the codes, as they are in memory, with rounded activations."""
    model = onnx_model(bundle, target="standard")
    packed_form(model)
    assert bundle.golden is not None
    seal(model, bundle.golden)
    _share(model, path)
    new.write_bytes(model.SerializeToString())


def packed_form(model: onnx.ModelProto) -> None:
    """Multiply with the codes, in `MatMulNBits`, where a graph widens them to multiply with float32 weights."""
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [_packed_product(node, makers, tensors) or node for node in graph.node]
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(NodeProto.FromString(node.SerializeToString()))
            needed.update(node.input)
    unused = [tensor for tensor in graph.initializer if tensor.name not in needed]
    for tensor in unused:
        graph.initializer.remove(tensor)
    del graph.node[:]
    graph.node.extend(kept[::-1])
    model.opset_import.append(helper.make_opsetid(CONTRIB, 1))


def _packed_product(
    node: NodeProto, makers: dict[str, NodeProto], tensors: dict[str, TensorProto]
) -> NodeProto | None:
    """The product of `node` with codes; `None` if it is no product with widened ones."""
    transpose = makers.get(node.input[1]) if node.op_type == "MatMul" else None
    widen = makers.get(transpose.input[0]) if transpose is not None else None
    if widen is None or widen.op_type != "DequantizeLinear":
        return None
    codes, scales, _ = widen.input
    tensor = tensors[codes]
    rows, blocks = tensors[scales].dims
    bits = len(tensor.raw_data) * 8 // (rows * blocks * BLOCK)
    # The same bytes, as this operator wants them described.
    tensor.data_type = TensorProto.UINT8
    tensor.dims[:] = rows, blocks, BLOCK * bits // 8
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], codes, scales],
        node.output,
        name=node.name,
        domain=CONTRIB,
        K=blocks * BLOCK,
        N=rows,
        bits=bits,
        block_size=BLOCK,
    )


def _share(model: onnx.ModelProto, path: Path) -> None:
    """Take the tensors that the graph at `path` has, too, from its file."""
    others = onnx.load(path, load_external_data=False).graph.initializer
    places = {tensor.name: tensor.external_data for tensor in others if tensor.external_data}
    for tensor in model.graph.initializer:
        if tensor.name in places:
            lengths = [entry.value for entry in places[tensor.name] if entry.key == "length"]
            assert lengths == [str(len(tensor.raw_data))], tensor.name
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.extend(places[tensor.name])
