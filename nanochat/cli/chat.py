"""This file holds `nanochat chat`: one answer, or a conversation at the terminal."""

import contextlib
import re
import sys
from typing import TYPE_CHECKING

import click

from nanochat.cli.generate import Tally
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
    from nanochat.generation import Options
    from nanochat.lm import Model
    from nanochat.ops import Storage
    from nanochat.text.chat import Message

__all__ = ["chat"]

_EXAMPLES = """\b
Examples:
  nanochat chat
  nanochat chat nanochat-tiny --system "Answer in one line." --temperature 0.5
  nanochat chat path/to/model --message "What is a lifetime in Rust?"
"""
# Other lines that begin with a slash are questions: a comment, a path.
_COMMAND = re.compile(r"/[a-z]+")
_HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C ends an answer."


@click.command(epilog=_EXAMPLES)
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
    tally = conversation.ask(message)
    with tally.until_interrupt():
        for part in tally.texts():
            if not as_json:
                write(part)
    if as_json:
        print_json({"model": model, "message": message, **tally.summary(conversation.length)})
    else:
        write("\n")
    tally.pass_interrupt_on()


class _Conversation:
    """The messages until now."""

    def __init__(self, model: "Model", system: str | None, options: "Options") -> None:
        self.length = 0
        self._model = model
        self._options = options
        self._system: list[Message] = []
        if system is not None:
            self._system = [{"role": "system", "content": system}]
        self._turns: list[Message] = []

    def clear(self) -> None:
        self._turns = []

    def ask(self, text: str) -> Tally:
        """Add a message of the user; the tally gives the answer, which `answered` adds."""
        from nanochat.text.chat import render

        question: Message = {"role": "user", "content": text}
        turns = [*self._turns, question]
        while True:
            ids = render([*self._system, *turns], self._model.tokenizer)
            try:
                tally = Tally(self._model.pieces([ids], **self._options))
            except ContextLengthError:
                if len(turns) < 3:
                    raise
                turns = turns[2:]
                note("(the context is full: the oldest question and its answer are forgotten)")
            else:
                self.length, self._turns = len(ids), turns
                return tally

    def answered(self, text: str) -> None:
        self._turns.append({"role": "assistant", "content": text})


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
            conversation.clear()
            note("(forgotten)")
        elif text == "/help":
            note(_HELP)
        elif _COMMAND.fullmatch(text):
            note(f"(there is no command {text}) {_HELP}")
        elif text:
            _answer(conversation, text)


def _answer(conversation: _Conversation, text: str) -> None:
    try:
        tally = conversation.ask(text)
    except InputError as error:
        note(f"error: {error}")
        return
    with tally.until_interrupt():
        for part in tally.texts():
            write(part)
    conversation.answered(tally.text)
    write("\n")
