"""This file holds `nanochat generate` and `nanochat chat`: a text that goes on, one answer, or a conversation."""

import contextlib
import re
import sys
import time
from collections.abc import Iterator
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
from nanochat.errors import ContextLengthError, InputError

if TYPE_CHECKING:
    from nanochat.generation import Options, Piece
    from nanochat.lm import Model
    from nanochat.ops import Storage
    from nanochat.text.chat import Message

__all__ = ["chat", "generate"]

_GENERATE_EXAMPLES = """\b
Examples:
  nanochat generate --prompt "fn main() {"
  nanochat generate nanochat-tiny --prompt "fn main() {" --temperature 0 --max-tokens 40
  nanochat generate path/to/model --prompt - --stop "}" < prompt.txt
"""
_CHAT_EXAMPLES = """\b
Examples:
  nanochat chat
  nanochat chat nanochat-tiny --system "Answer in one line." --temperature 0.5
  nanochat chat path/to/model --message "What is a lifetime in Rust?"
"""
# Other lines that begin with a slash are questions: a comment, a path.
_COMMAND = re.compile(r"/[a-z]+")
_HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C ends an answer."


@click.command(epilog=_GENERATE_EXAMPLES)
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
    output = _Output(loaded.pieces([prompt_ids], **options))
    output.show(silent=as_json)
    if as_json:
        print_json({"model": model, "prompt": text, **output.summary(len(prompt_ids))})
    else:
        write("\n")
        note(output.sentence())
    output.pass_interrupt_on()


@click.command(epilog=_CHAT_EXAMPLES)
@model_argument
@click.option("--message", help="Ask this one thing and print the answer.")
@click.option("--system", help="What the model is told before the conversation.")
@generation_options
@backend_option
@kv_cache_option
@threads_option
@as_json_option
def chat(
    model: str,
    message: str | None,
    system: str | None,
    backend: str,
    kv_cache: "Storage",
    num_threads: int | None,
    *,
    as_json: bool,
    **values: object,
) -> None:
    """Talk with MODEL; what is said stays in the conversation until the context is full.

    MODEL is a directory, a .gguf or .onnx file, a name that `nanochat models list` shows, or OWNER/NAME on the Hugging
    Face Hub, perhaps with @REVISION and :PART, as for `nanochat models pull`.
    """
    if as_json and message is None:
        raise click.UsageError("--json prints one answer: pass --message, too")
    if message == "":
        raise InputError(
            "the message is empty: ask something, or leave --message out for a conversation"
        )
    options = read_options(values)
    conversation = _Conversation(load_model(model, backend, kv_cache, num_threads), system, options)
    if message is None:
        _converse(conversation)
        return
    output = conversation.ask(message)
    output.show(silent=as_json)
    if as_json:
        print_json({"model": model, "message": message, **output.summary(conversation.length)})
    else:
        write("\n")
    output.pass_interrupt_on()


class _Output:
    """The pieces of one text, counted and timed on their way to the user."""

    def __init__(self, pieces: "Iterator[Piece]") -> None:
        self.text = ""
        self._pieces = pieces
        self._num_tokens = 0
        self._finish_reason = ""
        self._first_seconds = 0.0
        self._seconds = 0.0

    def show(self, *, silent: bool = False) -> None:
        """Let the text come, and print it unless `silent`; Ctrl-C ends it where it is."""
        start = time.perf_counter()
        try:
            for piece in self._pieces:
                self._seconds = time.perf_counter() - start
                self._first_seconds = self._first_seconds or self._seconds
                self._num_tokens += 1
                self.text += piece.text
                self._finish_reason = piece.finish_reason or self._finish_reason
                if piece.text and not silent:
                    write(piece.text)
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


class _Conversation:
    """The messages until now; `length` is the number of tokens that the last answer follows."""

    def __init__(self, model: "Model", system: str | None, options: "Options") -> None:
        self.length = 0
        self.turns: list[Message] = []
        self._model = model
        self._options = options
        self._system: list[Message] = []
        if system is not None:
            self._system = [{"role": "system", "content": system}]

    def ask(self, text: str) -> _Output:
        """Add a message of the user, and begin the answer to it."""
        from nanochat.text.chat import render

        turns: list[Message] = [*self.turns, {"role": "user", "content": text}]
        while True:
            ids = render([*self._system, *turns], self._model.tokenizer)
            try:
                output = _Output(self._model.pieces([ids], **self._options))
            except ContextLengthError:
                if len(turns) < 3:
                    raise
                turns = turns[2:]
                note("(the context is full: the oldest question and its answer are forgotten)")
            else:
                self.length, self.turns = len(ids), turns
                return output


def _converse(conversation: _Conversation) -> None:
    # Importing it gives `input` line editing and a history; Windows has none.
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
    terminal = sys.stdin.isatty()
    note(_HELP)
    while True:
        try:
            text = input("> " if terminal else "").strip()
        except EOFError:
            note("")
            return
        except KeyboardInterrupt:
            note(f"\n{_HELP}")
            continue
        if text == "/exit":
            return
        if text == "/clear":
            conversation.turns = []
            note("(forgotten)")
        elif text == "/help":
            note(_HELP)
        elif _COMMAND.fullmatch(text):
            note(f"(there is no command {text}) {_HELP}")
        elif text:
            try:
                output = conversation.ask(text)
            except InputError as error:
                note(f"error: {error}")
                continue
            output.show()
            conversation.turns.append({"role": "assistant", "content": output.text})
            write("\n")
