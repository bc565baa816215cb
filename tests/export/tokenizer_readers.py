"""This file holds the programs that read the tokenizer of an export, as their users call them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import mlx_lm.utils
import numpy as np
import onnxruntime_genai
import tokenizers
from transformers import AutoTokenizer

from nanochat.text.chat import Message


class Reader(Protocol):
    """A tokenizer of a folder, which begins a text as its files say."""

    def encode(self, text: str, *, specials: bool) -> list[int]:
        """Tokens of a text with what stands before it; with `specials`, names of special tokens become those."""

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens, of which special ones have none."""


class Transformers:
    """transformers, through its class for every model."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = self.load(path)

    def load(self, path: Path) -> Any:
        return AutoTokenizer.from_pretrained(path)

    def encode(self, text: str, *, specials: bool) -> list[int]:
        return [*self.tokenizer.encode(text, split_special_tokens=not specials)]

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def chat(self, messages: list[Message], *, reply: bool) -> list[int]:
        return [
            *self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=reply, return_dict=False
            )
        ]


class _MlxLm(Transformers):
    def load(self, path: Path) -> Any:
        return mlx_lm.utils.load_tokenizer(path)  # type: ignore[no-untyped-call]  # the library's


class _Library:
    def __init__(self, path: Path) -> None:
        self.tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))

    def encode(self, text: str, *, specials: bool) -> list[int]:
        self.tokenizer.encode_special_tokens = not specials
        return self.tokenizer.encode(text).ids

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens)


class Genai:
    """onnxruntime-genai, which knows no text in which the names of special tokens are data."""

    def __init__(self, path: Path) -> None:
        self.tokenizer: Any = onnxruntime_genai.Tokenizer(onnxruntime_genai.Model(str(path)))

    def encode(self, text: str, *, starts: bool = True) -> list[int]:
        # It begins texts where it is asked to, as prompts of its examples are conversations.
        self.tokenizer.update_options(add_special_tokens=str(starts).lower())
        return [int(token) for token in self.tokenizer.encode(text)]

    def chat(self, messages: list[Message], *, reply: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(json.dumps(messages), add_generation_prompt=reply)
        )

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(np.array(tokens, np.int32)))


READERS: dict[str, Callable[[Path], Reader]] = {
    "transformers": Transformers,
    "tokenizers": _Library,
    "mlx-lm": _MlxLm,
}
