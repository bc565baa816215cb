"""This file holds models of random weights, for tests and benchmarks."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.config import ModelConfig
from nanochat.init import init, initial_leaf
from nanochat.shapes import shapes
from nanochat.weights import Dense, Int8, Latent, Spec, Stored, Ternary, Weights, map_leaves

__all__ = ["random_packed_weights", "random_weights"]

# The byte of each of the 81 combinations of four codes.
_LEGAL_BYTES = np.array(
    [byte for byte in range(256) if all(byte >> shift & 3 < 3 for shift in (0, 2, 4, 6))], np.uint8
)
# Variances of uniform codes: in {-1, 0, 1}, and from -127 to 127.
_TERNARY_VARIANCE = 2 / 3
_INT8_VARIANCE = (255**2 - 1) / 12


def random_weights(config: ModelConfig, seed: int = 0) -> Weights[Stored]:
    """Initial weights, but no dense one is 0, 1 or equal to its neighbour, so that none can be forgotten."""
    generator = np.random.default_rng(seed)

    def disturb(name: str, leaf: Stored) -> Stored:
        del name
        if not isinstance(leaf, Dense):
            return leaf
        shape = leaf.values.shape
        deviation = np.float32(0.3 if len(shape) == 1 else shape[-1] ** -0.5)
        values = leaf.values + deviation * generator.standard_normal(shape, np.float32)
        return Dense(values=values.astype(leaf.values.dtype))

    return map_leaves(disturb, init(config, generator))


def random_packed_weights(config: ModelConfig, seed: int) -> Weights[Stored]:
    """Frozen weights as large as initial ones, drawn without their floats: 2.3 billion take 6 seconds and 0.8 GB.

    Codes are uniform, so a third of the ternary ones are 0, as many as rounding normal weights gives. Scales vary by a
    quarter, so that none can be mistaken for its neighbour. Dense leaves are those of `nanochat.init.init`.
    """
    generator = np.random.default_rng(seed)
    return map_leaves(lambda name, spec: _leaf(name, spec, config, generator), shapes(config))


def _leaf(name: str, spec: Spec, config: ModelConfig, generator: np.random.Generator) -> Stored:
    if spec.kind == "dense":
        return initial_leaf(name, spec, config, generator)
    rows, columns = spec.shape
    # One row shows how large the others would be.
    row = initial_leaf(name, dataclasses.replace(spec, shape=(1, columns)), config, generator)
    assert isinstance(row, Latent), name
    deviation = float(row.values.std())
    if spec.kind == "int8":
        return Int8(
            codes=generator.integers(-127, 128, spec.shape, np.int8),
            scales=_scales((rows,), deviation / _INT8_VARIANCE**0.5, generator),
            activation_block=spec.activation_block,
        )
    # Every input width of a ternary linear is a multiple of 4.
    assert columns % 4 == 0, name
    combinations = generator.integers(0, len(_LEGAL_BYTES), (rows, columns // 4), np.uint8)
    blocks = ternary.num_blocks(columns, spec.weight_block)
    return Ternary(
        packed=_LEGAL_BYTES[combinations],
        scales=_scales((rows, blocks), deviation / _TERNARY_VARIANCE**0.5, generator),
        columns=columns,
        activation_block=spec.activation_block,
    )


def _scales(
    shape: tuple[int, ...], mean: float, generator: np.random.Generator
) -> NDArray[np.float16]:
    scales = mean * generator.uniform(0.75, 1.25, shape)
    return np.maximum(scales, ternary.SMALLEST_SCALE).astype(np.float16)
