"""This file holds the digest of a graph: all that it computes with, however its tensors are stored."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import onnx
from onnx import TensorProto

from nanochat.bundle import Golden

__all__ = ["GOLDEN", "graph_digest", "seal"]

# The key of the metadata under which the golden record stands.
GOLDEN = "golden"
_DIGITS = 16


def seal(model: onnx.ModelProto, golden: Golden) -> None:
    """Put a golden record into a graph that is complete, with a digest of the graph."""
    for number, entry in enumerate(model.metadata_props):
        if entry.key == GOLDEN:
            del model.metadata_props[number]
            break
    digest = graph_digest(model, lambda tensor: tensor.raw_data)
    text = replace(golden, graph=digest).to_json()
    model.metadata_props.add(key=GOLDEN, value=text)


def graph_digest(
    model: onnx.ModelProto, numbers: Callable[[TensorProto], bytes | memoryview]
) -> str:
    """A digest of the nodes with their attributes, inputs, outputs, tensors and metadata, but for the golden record.

    `numbers` gives the bytes of a tensor, wherever they are stored.
    """
    sha = hashlib.sha256()

    def add(part: bytes | str) -> None:
        data = part.encode(errors="replace") if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little") + data)

    add(f"{model.ir_version}")
    for opset in sorted((o.domain, o.version) for o in model.opset_import):
        add(f"{opset}")
    for key, value in sorted((e.key, e.value) for e in model.metadata_props if e.key != GOLDEN):
        add(key)
        add(value)
    graph = model.graph
    for messages in (
        model.functions,
        graph.node,
        graph.input,
        graph.output,
        graph.sparse_initializer,
    ):
        add(f"{len(messages)}")
        for message in messages:
            add(message.SerializeToString(deterministic=True))
    for tensor in sorted(graph.initializer, key=lambda tensor: tensor.name):
        add(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}")
        data = numbers(tensor)
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
        # Before the next one is copied.
        del data
    return sha.hexdigest()[:_DIGITS]
