"""This file holds a model that is right by half, problems for it, and writers that say what a test wants."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from nanochat.bundle import Bundle
from nanochat.lm import Model
from nanochat.text.messages import Message
from nanochat.weights import Int8
from tests.parity.random_models import random_tokenizer, reciting_bundle

__all__ = ["PROBLEMS", "Script", "coin", "coin_bundle", "kind_of", "problems_file", "sensible"]

# The model writes 0 or 1, as a coin falls.
PROBLEMS = """\
/// Returns nothing.
fn nil() -> i32 { 0 }

/// Returns one thing.
fn single() -> i32 { 1 }

/// Returns a pair.
fn pair() -> i32 { 2 }

/// Returns nothing at all.
fn naught() -> u8 { 0 }
"""


def coin_bundle() -> Bundle:
    """A model that completes each function with 0 or 1, half of the time each."""
    tokenizer = random_tokenizer()
    # As a prompt ends, where the brace may be in one token with what stands before it.
    brace = tokenizer.encode("fn nil() -> i32 {")[-1]
    (space, zero, close) = tokenizer.encode(" 0}")
    (one,) = tokenizer.encode("1")
    bundle = reciting_bundle([brace, space, zero, close], context_length=1024)
    head = bundle.weights.head
    assert isinstance(head, Int8)
    codes, scales = np.array(head.codes), np.array(head.scales)
    codes[one], scales[one] = codes[zero], scales[zero]
    codes[close, one] = codes[close, zero]
    return replace(
        bundle, weights=replace(bundle.weights, head=replace(head, codes=codes, scales=scales))
    )


@cache
def coin() -> Model:
    """That model at work."""
    return Model.from_bundle(coin_bundle(), backend="reference")


def problems_file(folder: Path, text: str = PROBLEMS) -> Path:
    """A file of the problems above, or of others."""
    path = folder / "few.rs"
    path.write_text(text)
    return path


def kind_of(messages: Sequence[Message]) -> str:
    """What a writer is asked for: a summary, lessons, or operations."""
    first = str(messages[0]["content"])
    found = re.search(r'^\{"(lessons|operations)"', first, re.MULTILINE)
    return found[1] if found else "summary"


class Script:
    """A writer that answers what it is asked for by a function of the messages, or always alike."""

    def __init__(self, **answers: str | Callable[[Sequence[Message]], str]) -> None:
        self.asked: list[Sequence[Message]] = []
        self._answers = {"summary": "It returns a constant.", **answers}

    def write(self, messages: Sequence[Message]) -> str:
        self.asked.append([*messages])
        answer = self._answers[kind_of(messages)]
        return answer if isinstance(answer, str) else answer(messages)

    def describe(self) -> Mapping[str, object]:
        return {"name": "script"}

    def kinds(self) -> list[str]:
        return [kind_of(messages) for messages in self.asked]


def _lessons(messages: Sequence[Message]) -> str:
    found = re.search(r"fn (\w+)", str(messages[0]["content"]))
    assert found is not None
    return json.dumps({"lessons": [f"Read what {found[1]} means before you write a number."]})


def _operations(messages: Sequence[Message]) -> str:
    first = str(messages[0]["content"])
    listed, new = first.split("New lessons:\n\n")
    old = re.findall(r"^(L\d+): ", listed, re.MULTILINE)
    added = re.findall(r"^- (.*)", new, re.MULTILINE)
    rows = [{"operation": "ADD", "text": text} for text in added]
    return json.dumps({"operations": [*({"operation": "KEEP", "id": id} for id in old[:1]), *rows]})


def sensible() -> Script:
    """A writer that names each function once, confirms the oldest lesson and adds what is new."""
    return Script(lessons=_lessons, operations=_operations)
