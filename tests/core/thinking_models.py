"""This file holds models that think before they answer, with templates that mark thoughts as known ones do."""

import json
from collections.abc import Iterator
from functools import cache

from tokenizers import AddedToken, Tokenizer

from nanochat.bundle import Bundle
from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles
from tests.core.foreign_tokenizers import llama_3
from tests.parity.random_models import reciting_bundle

__all__ = ["ASKED", "OPENED", "PLAIN", "SWITCHED", "THOUGHT", "ids", "thinker", "tokenizer"]

_TURNS = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>"
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content.split('</think>')[-1] }}<|eot_id|>{% endfor %}"
)
# The model writes the first mark, if it is not told that it shall not.
SWITCHED = _TURNS + (
    "{% if add_generation_prompt %}<|start_header_id|>"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The template writes it, unless it is told so.
ASKED = _TURNS + (
    "{% if add_generation_prompt %}<|start_header_id|><think>{% if not enable_thinking|default(true) %}"
    "\n\n</think>\n\n{% endif %}{% endif %}"
)
# It always does.
OPENED = _TURNS + "{% if add_generation_prompt %}<|start_header_id|><think>{% endif %}"
# Nobody thinks.
PLAIN = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>{% endif %}"
)
THOUGHT = "abcdefgh"


@cache
def _library(special: bool) -> Tokenizer:
    library = Tokenizer.from_str(llama_3().to_str())
    marks = [
        AddedToken(name, special=special, normalized=False) for name in ("<think>", "</think>")
    ]
    library.add_special_tokens(marks) if special else library.add_tokens(marks)
    return library


def tokenizer(template: str, *, special: bool = False) -> LibraryTokenizer:
    """One whose marks are tokens; `special` ones stand for no text."""
    library = _library(special)
    end = library.token_to_id("<|eot_id|>")
    return LibraryTokenizer(json.loads(library.to_str()), Roles(eos=end, chat_template=template))


def ids(codec: LibraryTokenizer) -> Iterator[int]:
    """What the model says: a thought of eight tokens, a line's end, and xyz."""
    text = f"<|start_header_id|><think>{THOUGHT}</think>\nxyz<|eot_id|>"
    return iter(codec.encode(text, specials=True))


def thinker(template: str, *, special: bool = False) -> Bundle:
    """A model that says this, whatever it is asked; after a line's end, always xyz."""
    codec = tokenizer(template, special=special)
    return reciting_bundle([*ids(codec)], tokenizer=codec, context_length=400)
