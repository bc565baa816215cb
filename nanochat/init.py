"""This file holds the random initial weights of a model, drawn from a NumPy generator in the order of the names."""

import math
import re

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.blocks.plain import plain
from nanochat.config import ModelConfig
from nanochat.shapes import run_order, shapes
from nanochat.weights import (
    DENSE_DTYPES,
    Dense,
    Int8,
    Latent,
    Spec,
    Stored,
    Ternary,
    Weights,
    leaf_of,
    map_leaves,
    scale_dtype,
)

__all__ = ["freeze", "freeze_leaf", "init", "initial_leaf", "latent_values", "widened"]


def init(config: ModelConfig, generator: np.random.Generator) -> Weights[Stored]:
    """Initial latent weights.

    Linears are normal with variance 1 / columns, those that write to the residual stream smaller by the square root of
    the number of writes. Each mHC site reads and writes one stream more than the others, another at every site:
    streams that start equal and are treated alike would stay equal for ever (`mhc_stream`).

    References
    ----------
    .. [1] github.com/FFTYYY/mhc-lite, commit ea19775: biases -1 and +1 at stream ``layer mod n``, mixing bias -8.
    """
    return map_leaves(
        lambda name, spec: initial_leaf(name, spec, config, generator), shapes(config)
    )


def freeze(weights: Weights[Stored]) -> Weights[Stored]:
    """Round every latent leaf, once and for good, to the leaf that it stands for; refuse one that is not finite."""
    return map_leaves(freeze_leaf, weights)


def freeze_leaf(name: str, leaf: Stored) -> Stored:
    """One leaf of `freeze`."""
    if isinstance(leaf, Dense):
        ternary.require_finite(leaf.values, name)
        return leaf
    if not isinstance(leaf, Latent):
        return leaf
    if leaf.kind == "int8":
        codes, scales = ternary.quantize_table(leaf.values, block=leaf.weight_block, name=name)
        return Int8(
            codes=codes,
            scales=scales.astype(DENSE_DTYPES[scale_dtype(leaf.weight_block)]),
            activation_block=leaf.activation_block,
        )
    codes, scales = ternary.quantize(leaf.values, block=leaf.weight_block, name=name)
    return Ternary(
        packed=ternary.pack(codes, name=name),
        scales=scales,
        columns=codes.shape[1],
        activation_block=leaf.activation_block,
    )


def widened(name: str, leaf: Stored) -> NDArray[np.float32]:
    """The numbers that a rounded leaf stands for."""
    match leaf := plain(leaf):
        case Ternary():
            codes = ternary.unpack(leaf.packed, columns=leaf.columns, name=name)
            return ternary.dequantize(codes, leaf.scales)
        case Int8():
            return ternary.dequantize(leaf.codes, leaf.scales)
        case Dense():
            return leaf.values.astype(np.float32)
        case Latent():
            raise AssertionError


def latent_values(name: str, leaf: Stored) -> NDArray[np.float32]:
    """Numbers that training rounds to just this leaf, as `freeze_leaf` does."""
    leaf = plain(leaf)
    if isinstance(leaf, Ternary):
        codes = ternary.unpack(leaf.packed, columns=leaf.columns, name=name)
        return ternary.latent(codes, leaf.scales)
    return widened(name, leaf)


def initial_leaf(
    name: str, spec: Spec, config: ModelConfig, generator: np.random.Generator
) -> Stored:
    """The initial numbers of one leaf of `init`: latent, or dense."""
    return leaf_of(spec, _values(name, spec, config, generator))


def _values(
    name: str, spec: Spec, config: ModelConfig, generator: np.random.Generator
) -> NDArray[np.float32]:
    def normal(deviation: float) -> NDArray[np.float32]:
        return generator.standard_normal(spec.shape, np.float32) * np.float32(deviation)

    columns = spec.shape[-1]
    match spec.initial:
        case "ones":
            return np.ones(spec.shape, np.float32)
        case "zeros":
            return np.zeros(spec.shape, np.float32)
        case "linear" | "head" | "conv":
            return normal(1 / math.sqrt(columns))
        case "output":
            return normal(1 / math.sqrt(columns * 2 * len(run_order(config))))
        case "embedding":
            return normal(1.0 / math.sqrt(columns) if config.tie_embeddings else 1.0)
        case "signs":
            return (2 * generator.integers(0, 2, spec.shape) - 1).astype(np.float32)
        case "log_rate":
            return np.log(generator.uniform(1, 16, spec.shape)).astype(np.float32)
        case "time_bias":
            step = np.exp(generator.uniform(math.log(1e-3), math.log(0.1), spec.shape))
            # The inverse of softplus.
            return (step + np.log(-np.expm1(-step))).astype(np.float32)
        case "mhc_stream":
            biases = np.full(spec.shape, -1, np.float32)
            biases[_site_index(name) % config.num_streams] = 1
            return biases
        case "mhc_gates":
            return np.full(spec.shape, 0.01, np.float32)
        case "mhc_lite":
            logits = np.full(spec.shape, config.mixer_bias, np.float32)
            logits[0] = 0
            return logits
        case "mhc_sinkhorn":
            off_diagonal = 1 - np.eye(config.num_streams, dtype=np.float32)
            return (off_diagonal * np.float32(config.mixer_bias)).reshape(-1)
    raise AssertionError(spec.initial)


def _site_index(name: str) -> int:
    match = re.match(r"layers\.(\d+)\.(mixer|network)_site\.", name)
    assert match is not None, name
    return 2 * int(match[1]) + (match[2] == "network")
