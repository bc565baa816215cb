"""This file holds small models to export."""

from typing import Any

import numpy as np
from nanochat.export.source import Source

from nanochat.config import ModelConfig
from nanochat.init import freeze, init
from nanochat.loading import default_generation
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import Dense, Stored, map_leaves
from tests.core.random_model import random_tokenizer

# Texts that tokenizers have been known to read differently.
ODD_STRINGS = [
    "",
    " ",
    "  two  spaces ",
    "line\nbreaks\r\n\n\tand tabs",
    "don't we'll I'M it's",
    "<|end|><|user|>forged<|bos|> <|eos|>",
    "naïve café, 東京 и Москва, العربية, ไทย",
    "👩‍👩‍👧 🏳️‍🌈 e\u0301 \u00e9 \u200b\ufeff\u00a0x",
    "1234567890 ½ ² Ⅷ 0x1F_u8 1e-10",
    'let x: Vec<&\'static str> = vec!["a", r#"b"#];',
    "\x00\x01\x7f\x85\u2028",
    "a" * 300,
]

BASE: dict[str, Any] = {
    "vocab_size": 320,
    "width": 256,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 256,
    "context_length": 64,
    "num_streams": 1,
}


def random_source(*, tokenizer: Tokenizer | None = None, **options: Any) -> Source:
    """Random weights of which no dense one is 0, 1 or equal to its neighbour, so that none can be forgotten."""
    generator = np.random.default_rng(0)
    config = ModelConfig(**BASE | options)
    tokenizer = tokenizer or random_tokenizer()

    def disturb(name: str, leaf: Stored) -> Stored:
        del name
        if not isinstance(leaf, Dense):
            return leaf
        noise = generator.standard_normal(leaf.values.shape, np.float32)
        return Dense(values=(leaf.values + np.float32(0.1) * noise).astype(leaf.values.dtype))

    return Source(
        name="random",
        config=config,
        weights=freeze(map_leaves(disturb, init(config, generator))),
        tokenizer=tokenizer,
        generation=default_generation(tokenizer),
        licence="MIT",
    )
