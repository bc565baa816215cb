"""This file holds `nanochat generate`."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from nanochat.cli.options import (
    as_json_option,
    backend_option,
    generation_options,
    kv_cache_option,
    load_model,
    model_argument,
    read_options,
    threads_option,
)
from nanochat.cli.output import note, print_json, write
from nanochat.errors import InputError

if TYPE_CHECKING:
    from nanochat.generation import Piece
    from nanochat.ops import Storage

__all__ = ["Tally", "generate"]

_EXAMPLES = """\b
Examples:
  nanochat generate --prompt "fn main() {"
  nanochat generate nanochat-tiny --prompt "fn main() {" --temperature 0 --max-tokens 40
  nanochat generate path/to/model --prompt - --stop "}" < prompt.txt
"""


@click.command(epilog=_EXAMPLES)
@model_argument
@click.option("--prompt", required=True, help="Text to continue; - reads it from standard input.")
@generation_options
@backend_option
@kv_cache_option
@threads_option
@as_json_option
def generate(
    model: str,
    prompt: str,
    backend: str,
    kv_cache: "Storage",
    num_threads: int | None,
    *,
    as_json: bool,
    **values: object,
) -> None:
    """Print what MODEL writes after a prompt.

    MODEL is a directory, a .gguf or .onnx file, a name that `nanochat models list` shows, or OWNER/NAME on the Hugging
    Face Hub, perhaps with @REVISION and :PART, as for `nanochat models pull`.
    Ctrl-C ends the text where it is.
    """
    options = read_options(values)
    text = _standard_input() if prompt == "-" else prompt
    loaded = load_model(model, backend, kv_cache, num_threads)
    prompt_ids = loaded.encode_prompt(text)
    tally = Tally(loaded.pieces([prompt_ids], **options))
    with tally.until_interrupt():
        for part in tally.texts():
            if not as_json:
                write(part)
    if as_json:
        print_json({"model": model, "prompt": text, **tally.summary(len(prompt_ids))})
    else:
        write("\n")
        note(tally.sentence())
    tally.pass_interrupt_on()


class Tally:
    """The pieces of one text, counted and timed on their way to the user."""

    def __init__(self, pieces: "Iterator[Piece]") -> None:
        self._pieces = pieces
        self._parts: list[str] = []
        self._num_tokens = 0
        self._finish_reason = ""
        self._first_seconds = 0.0
        self._seconds = 0.0

    @property
    def text(self) -> str:
        """What came until now."""
        return "".join(self._parts)

    def texts(self) -> Iterator[str]:
        """Yield the parts of the text."""
        start = time.perf_counter()
        for piece in self._pieces:
            self._seconds = time.perf_counter() - start
            self._first_seconds = self._first_seconds or self._seconds
            self._num_tokens += 1
            self._parts.append(piece.text)
            self._finish_reason = piece.finish_reason or self._finish_reason
            if piece.text:
                yield piece.text

    @contextmanager
    def until_interrupt(self) -> Iterator[None]:
        """End the block at Ctrl-C, with what came until then."""
        try:
            yield
        except KeyboardInterrupt:
            self._finish_reason = "interrupted"

    def pass_interrupt_on(self) -> None:
        """Raise the interrupt that ended the text, if one did: the process shall say so."""
        if self._finish_reason == "interrupted":
            raise KeyboardInterrupt

    def summary(self, prompt_tokens: int) -> dict[str, object]:
        """What there is to say about the text, ready for JSON."""
        return {
            "text": self.text,
            "finish_reason": self._finish_reason,
            "prompt_tokens": prompt_tokens,
            "tokens": self._num_tokens,
            "first_token_seconds": round(self._first_seconds, 6),
            "seconds": round(self._seconds, 6),
        }

    def sentence(self) -> str:
        """The same for people."""
        tokens = "1 token" if self._num_tokens == 1 else f"{self._num_tokens} tokens"
        parts = [f"{tokens}, the first after {self._first_seconds:.2f} s"]
        if self._num_tokens > 1:
            rate = (self._num_tokens - 1) / (self._seconds - self._first_seconds)
            parts.append(f"then {rate:.1f} tokens/s")
        endings = {
            "stop": "the model ended the text, or a stop string did",
            "length": "as many as asked for, or the context is full",
        }
        return f"({', '.join(parts)}; {endings.get(self._finish_reason, self._finish_reason)})"


def _standard_input() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"byte {error.start} of standard input is not UTF-8: convert the text"
        ) from error
