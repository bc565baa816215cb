"""This file holds texts that are tried against a grammar."""

import numpy as np

from nanochat.text.codec import TextCodec
from nanochat.text.grammar import Vocabulary, lark_grammar

__all__ = ["allowed_start"]


def allowed_start(grammar: str, codec: TextCodec, text: str) -> str:
    """As much of a text, with special tokens by their names, as a grammar allows, and "." if it may end there."""
    vocabulary = Vocabulary(codec)
    matcher = lark_grammar(vocabulary, grammar, most=1_000_000).matcher()
    allowed = np.zeros((codec.vocab_size + 31) // 32, np.uint32)
    taken: list[int] = []
    for token in codec.encode(text, specials=True):
        matcher.fill(allowed)
        if not allowed[token >> 5] >> (token & 31) & 1:
            break
        matcher.push(token)
        taken.append(token)
        assert matcher.error is None
    matcher.fill(allowed)
    end = min(codec.stop_ids)
    is_whole = bool(allowed[end >> 5] >> (end & 31) & 1)
    return codec.decode(taken, skip_specials=False) + "." * is_whole
