"""This file holds the models of tests and benchmarks: of random weights, and one that recites a text."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.bundle import Bundle, default_generation
from nanochat.config import ModelConfig
from nanochat.init import freeze, init, initial_leaf
from nanochat.lm import Model
from nanochat.proof.golden import with_golden
from nanochat.shapes import shapes
from nanochat.text.codec import TextCodec
from nanochat.text.tokenizer import SPECIALS, Tokenizer
from nanochat.weights import (
    DENSE_DTYPES,
    Dense,
    Int8,
    Latent,
    Spec,
    Stored,
    Ternary,
    Weights,
    map_leaves,
)

__all__ = [
    "answering_bundle",
    "random_bundle",
    "random_config",
    "random_model",
    "random_packed_weights",
    "random_tokenizer",
    "random_weights",
    "reciting_bundle",
    "silent_weights",
    "with_a_block_of_zeros",
]

_TEXT = 'fn main() { println!("Hello, wörld"); } // to be or not to be, that is the question\n'

# The byte of each of the 81 combinations of four codes.
_LEGAL_BYTES = np.array(
    [byte for byte in range(256) if all(byte >> shift & 3 < 3 for shift in (0, 2, 4, 6))], np.uint8
)
# Variances of uniform codes: in {-1, 0, 1}, and from -127 to 127.
_TERNARY_VARIANCE = 2 / 3
_INT8_VARIANCE = (255**2 - 1) / 12


def random_weights(config: ModelConfig, seed: int = 0) -> Weights[Stored]:
    """Initial weights, but no dense one is 0, 1 or equal to its neighbour, so that none can be forgotten.

    Signs are signs.
    """
    generator = np.random.default_rng(seed)

    def disturb(name: str, leaf: Stored) -> Stored:
        if not isinstance(leaf, Dense) or name.startswith("signs."):
            return leaf
        shape = leaf.values.shape
        deviation = np.float32(0.3 if len(shape) == 1 else shape[-1] ** -0.5)
        values = leaf.values + deviation * generator.standard_normal(shape, np.float32)
        return Dense(values=values.astype(leaf.values.dtype))

    return map_leaves(disturb, init(config, generator))


def with_a_block_of_zeros(weights: Weights[Stored]) -> Weights[Stored]:
    """The same, but one block of the first query matrix has no scale that could be told from its codes."""

    def clear(name: str, leaf: Stored) -> Stored:
        if isinstance(leaf, Latent) and name == "layers.0.mixer.q":
            leaf.values[3, : leaf.weight_block] = 0
        return leaf

    return map_leaves(clear, weights)


def random_packed_weights(config: ModelConfig, seed: int) -> Weights[Stored]:
    """Frozen weights as large as initial ones, drawn without their floats: 2.3 billion take 6 seconds and 0.8 GB.

    Codes are uniform, so a third of the ternary ones are 0, as many as rounding normal weights gives. Scales vary by a
    quarter, so that none can be mistaken for its neighbour. Dense leaves are those of `nanochat.init.init`.
    """
    generator = np.random.default_rng(seed)
    return map_leaves(lambda name, spec: _leaf(name, spec, config, generator), shapes(config))


@cache
def random_tokenizer() -> Tokenizer:
    """A tokenizer of 300 tokens that knows one line of text."""
    return Tokenizer.train([_TEXT] * 4, vocab_size=300)


def random_bundle(*, tokenizer: TextCodec | None = None, seed: int = 0, **options: Any) -> Bundle:
    """Two layers of random weights with one stream and a tied head, but for `options`."""
    tokenizer = tokenizer or random_tokenizer()
    simplest: dict[str, Any] = {
        "vocab_size": 320,
        "width": 256,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_width": 256,
        "context_length": 64,
        "num_streams": 1,
    }
    config = ModelConfig(**simplest | options)
    return with_golden(
        Bundle(
            name="random",
            config=config,
            weights=freeze(random_weights(config, seed)),
            tokenizer=tokenizer,
            generation=default_generation(tokenizer),
            licence="MIT",
        )
    )


def random_config(*, context_length: int = 64) -> ModelConfig:
    """Two layers with two streams and an untied head, for `silent_weights`."""
    return ModelConfig(
        vocab_size=random_tokenizer().vocab_size,
        width=256,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_width=256,
        context_length=context_length,
        tie_embeddings=False,
        num_streams=2,
    )


def silent_weights(config: ModelConfig) -> Weights[Stored]:
    """Frozen random weights with which the logits of special tokens are 0: the most probable token is never one."""

    def silence(name: str, leaf: Stored) -> Stored:
        if name == "head" and isinstance(leaf, Latent):
            leaf.values[: len(SPECIALS)] = 0
        return leaf

    return freeze(map_leaves(silence, random_weights(config)))


def random_model(*, context_length: int = 64) -> Model:
    """A model that writes many different tokens, and ends no text."""
    config = random_config(context_length=context_length)
    return Model(config, silent_weights(config), random_tokenizer(), backend="reference")


def reciting_bundle(
    tokens: Sequence[int], *, tokenizer: TextCodec | None = None, context_length: int = 64
) -> Bundle:
    """A model that turns each of `tokens` into the next: no token may occur twice, except as the last.

    Its layers add nothing, there is one feature for each token, and the head is a table of successors.
    """
    tokenizer = tokenizer or random_tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=512,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        ffn_width=256,
        context_length=context_length,
        tie_embeddings=False,
        num_streams=1,
    )

    def write(name: str, leaf: Stored) -> Stored:
        if not isinstance(leaf, Latent):
            return leaf
        leaf.values[:] = 0
        if name == "embedding":
            np.fill_diagonal(leaf.values, 1)
        if name == "head":
            leaf.values[tokens[1:], tokens[:-1]] = 1
        return leaf

    return Bundle(
        name="reciting",
        config=config,
        weights=freeze(map_leaves(write, init(config, np.random.default_rng(0)))),
        tokenizer=tokenizer,
        generation=default_generation(tokenizer),
    )


def answering_bundle() -> Bundle:
    """A model that answers everything with wxyz, and ends its turn."""
    tokenizer = random_tokenizer()
    return reciting_bundle([tokenizer.assistant, *tokenizer.encode("wxyz"), tokenizer.end])


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
            scales=_scales(
                (rows, columns // spec.weight_block), deviation / _INT8_VARIANCE**0.5, generator
            ).astype(DENSE_DTYPES[spec.dtype]),
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
