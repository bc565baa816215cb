"""This file holds a small tokenizer, and the tokens that prepared data holds."""

from pathlib import Path

import numpy as np

from nanochat.text.tokenizer import Tokenizer

__all__ = ["TOKENIZER", "WORDS", "stream"]

WORDS = ["fn", "let", "mut", "struct", "impl", "(self)", "{\n", "}\n", "->", "u32", "é", "🙂"]
TOKENIZER = Tokenizer.train([" ".join(WORDS)] * 2, vocab_size=290)


def stream(data: Path, split: str) -> list[int]:
    paths = sorted(data.glob(f"{split}-[0-9]*.npy"))
    tokens: list[int] = np.concatenate([np.load(path) for path in paths]).tolist()
    return tokens
