"""This file holds the mHC coefficients of a site in an ONNX graph; see :meth:`nanochat.ops.Ops.mhc_read`.

Each function gives, for n streams, what to read with, (n,), what to write with, (n,), and the mixing matrix, (n, n), or
none; those of a dynamic site have (batch, tokens) in front.
"""

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.reference.ops import IntegerLinear, ReferenceOps, permutation_matrices
from nanochat.config import Mixer
from nanochat.export.onnx.graph import Graph, Value
from nanochat.export.onnx.leaves import Parameter, dense_product
from nanochat.weights import Mhc

__all__ = ["Coefficients", "dynamic_coefficients", "static_coefficients"]

Coefficients = tuple[Value, Value, Value | None]


def static_coefficients(
    site: Mhc[Parameter], n: int, mixer: Mixer, iterations: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Compute the coefficients now; the mixing matrix of streams that are not mixed is the identity."""
    leaves: Mhc[IntegerLinear | NDArray[np.float32]] = Mhc(
        read=site.read.dense_values(),
        write=site.write.dense_values(),
        mix=None if site.mix is None else site.mix.dense_values(),
        projection=None,
        gates=None,
    )
    # Reading from streams that are the unit vectors gives the coefficients themselves.
    units = np.eye(n, dtype=np.float32)
    read, post, mix = ReferenceOps().mhc_read(
        units[None, None], leaves, mixer=mixer, iterations=iterations, eps=0.0
    )
    return read[0, 0], post, units if mix is None else mix


def dynamic_coefficients(
    graph: Graph, streams: Value, site: Mhc[Parameter], mixer: Mixer, iterations: int, eps: float
) -> Coefficients:
    """Write the operations that compute the coefficients from the streams, (batch, tokens, n, C)."""
    assert site.projection is not None
    assert site.gates is not None
    batch, tokens, _, _ = streams.shape
    n, features = streams.size(2), streams.size(3)
    leaves = [site.read, site.write] + ([] if site.mix is None else [site.mix])
    sizes = [leaf.shape[0] for leaf in leaves]
    gates = np.repeat(site.gates.dense_values()[: len(sizes)], sizes)
    bias = np.concatenate([leaf.dense_values() for leaf in leaves])
    flat = graph.reshape(streams, (batch, tokens, n * features))
    normed = graph.rms_norm(flat, graph.literal(np.ones(n * features, np.float32)), eps=eps)
    found = graph.binary("Mul", dense_product(graph, normed, site.projection), graph.literal(gates))
    logits = graph.binary("Add", found, graph.literal(bias))
    parts = graph.split(logits, sizes)
    read, write = (graph.unary("Sigmoid", part) for part in parts[:2])
    post = graph.binary("Mul", write, graph.literal(np.array(2, np.float32)))
    mix = None if site.mix is None else _mixing_matrix(graph, parts[2], n, mixer, iterations)
    return read, post, mix


def _mixing_matrix(graph: Graph, logits: Value, n: int, mixer: Mixer, iterations: int) -> Value:
    shape = (*logits.shape[:2], n, n)
    if mixer == "lite":
        permutations = graph.literal(permutation_matrices(n).reshape(-1, n * n))
        return graph.reshape(graph.matmul(graph.unary("Softmax", logits), permutations), shape)
    largest = graph.reduce("ReduceMax", logits, -1)
    matrix = graph.reshape(graph.unary("Exp", graph.binary("Sub", logits, largest)), shape)
    for _ in range(iterations):
        matrix = graph.binary("Div", matrix, graph.reduce("ReduceSum", matrix, -2))
        matrix = graph.binary("Div", matrix, graph.reduce("ReduceSum", matrix, -1))
    return matrix
