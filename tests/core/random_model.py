"""This file holds small models for tests: one of random weights, and one that recites a text."""

from functools import cache

import numpy as np

from nanochat.config import ModelConfig
from nanochat.init import freeze, init
from nanochat.lm import Model
from nanochat.text.tokenizer import SPECIALS, Tokenizer
from nanochat.weights import Latent, Stored, Weights, map_leaves

TEXT = 'fn main() { println!("Hello, wörld"); } // to be or not to be, that is the question\n'


@cache
def random_tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 4, vocab_size=300)


def random_config(*, context_length: int = 64) -> ModelConfig:
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


def random_weights(config: ModelConfig) -> Weights[Stored]:
    """Random numbers, but the logits of special tokens are 0: the most probable token is never one."""

    def silence(name: str, leaf: Stored) -> Stored:
        if name == "head" and isinstance(leaf, Latent):
            leaf.values[: len(SPECIALS)] = 0
        return leaf

    return freeze(map_leaves(silence, init(config, np.random.default_rng(0))))


def random_model(*, context_length: int = 64) -> Model:
    config = random_config(context_length=context_length)
    return Model(config, random_weights(config), random_tokenizer(), backend="reference")


def reciting_config() -> ModelConfig:
    return ModelConfig(
        vocab_size=random_tokenizer().vocab_size,
        width=512,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        ffn_width=256,
        context_length=64,
        tie_embeddings=False,
        num_streams=1,
    )


def reciting_weights(tokens: list[int]) -> Weights[Stored]:
    """Layers that add nothing, one feature for each token, and a head that turns each token into the next.

    No token may occur twice, except as the last.
    """

    def write(name: str, leaf: Stored) -> Stored:
        if not isinstance(leaf, Latent):
            return leaf
        leaf.values[:] = 0
        if name == "embedding":
            np.fill_diagonal(leaf.values, 1)
        if name == "head":
            leaf.values[tokens[1:], tokens[:-1]] = 1
        return leaf

    return freeze(map_leaves(write, init(reciting_config(), np.random.default_rng(0))))
