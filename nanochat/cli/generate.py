"""This file holds `nanochat generate` and `nanochat chat`: a text that goes on, one answer, or a conversation."""

import contextlib
import functools
import re
import shlex
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast, get_args

import click

from nanochat.cli.options import (
    Command,
    as_json_option,
    backend_option,
    meant_to_think,
    model_argument,
    tables_option,
    threads_option,
    unpinned_option,
)
from nanochat.cli.output import note, print_json, show_thought, write
from nanochat.cli.run import as_file_errors
from nanochat.errors import ContextLengthError, InputError, counted
from nanochat.ops import Storage

if TYPE_CHECKING:
    from nanochat.generation.cache import PromptCache
    from nanochat.generation.options import GenerationOptions, Piece, TemplateOptions
    from nanochat.lm import Model
    from nanochat.text.chat import Message

__all__ = ["chat", "generate"]

_GENERATE_EXAMPLES = """\b
Examples:
  nanochat generate nanochat-tiny "fn main() {"
  nanochat generate nanochat-tiny "fn main() {" --temperature 0 --max-tokens 40
  nanochat generate path/to/model --prompt - --stop "}" < prompt.txt
"""
_CHAT_EXAMPLES = """\b
Examples:
  nanochat chat microsoft/bitnet-b1.58-2B-4T
  nanochat chat path/to/model.gguf "Why is the sky blue?" --system "Answer in one line."
  nanochat chat path/to/model.gguf --template chatml.jinja
  nanochat chat path/to/model.gguf "What is 17 * 23?" --think --thinking-budget 500
"""
# Other lines that begin with a slash are questions: a comment, a path.
_COMMAND = re.compile(r"/[a-z]+")
# Tokens after which the rate is measured: by then a backend has prepared the step that it repeats.
_WARM_TOKENS = 3
_HELP = "/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C ends an answer."

# Where the model's authors say nothing.
_USUAL: "GenerationOptions" = {"temperature": 0.7}
_STATED = "what the model's authors state, or "

_shown = functools.partial(click.option, show_default=True)
_OPTIONS = (
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        help="Most tokens to generate.  [default: 256, or what the context has left]",
    ),
    click.option(
        "--temperature",
        type=float,
        help=f"How freely to choose; 0 always takes the most probable token.  [default: {_STATED}0.7]",
    ),
    click.option(
        "--top-k",
        type=int,
        help=f"Choose among this many most probable tokens; 0 is off.  [default: {_STATED}0]",
    ),
    click.option(
        "--top-p",
        type=float,
        help=f"Choose among the fewest tokens of this total probability; 1 is off.  [default: {_STATED}1]",
    ),
    click.option(
        "--min-p",
        type=float,
        help="Choose among tokens at least this fraction as probable as the first; 0 is off.  "
        f"[default: {_STATED}0]",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        help=f"Make tokens that were there before less probable; 1 is off.  [default: {_STATED}1]",
    ),
    _shown(
        "--presence-penalty",
        default=0.0,
        help="Taken from the logit of each token that the answer has; 0 is off.",
    ),
    _shown(
        "--frequency-penalty",
        default=0.0,
        help="The same, as often as the answer has it; 0 is off.",
    ),
    click.option(
        "--stop", multiple=True, help="Text that ends the answer and is left out of it; repeatable."
    ),
    _shown("--seed", default=0, help="On one backend, the same seed gives the same text."),
    backend_option,
    _shown(
        "--kv-cache",
        type=click.Choice(get_args(Storage)),
        default="float32",
        help="What keys and values are kept in; the narrow ones round, and are faster in a long context.",
    ),
    tables_option,
    threads_option,
    unpinned_option,
    as_json_option,
)


def _generation_options(command: Command) -> Command:
    """Add what `_load` takes, and --json."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _load(
    name: str,
    *,
    backend: str,
    kv_cache: Storage,
    tables: Literal["int8"] | None,
    threads: int | None,
    unpinned: bool,
    **values: object,
) -> "tuple[Model, GenerationOptions]":
    """The model, and the options of the generation: those that were given, or its authors state, or have a default."""
    from nanochat.generation.options import read_options
    from nanochat.generation.stated import in_words
    from nanochat.lm import from_pretrained

    # They are declared with the names and types of the arguments.
    given = cast(
        "GenerationOptions", {name: value for name, value in values.items() if value is not None}
    )
    # Better refused now than when a large model has been loaded.
    read_options(given)
    with as_file_errors():
        model = from_pretrained(
            name,
            backend=backend,
            kv_cache=kv_cache,
            tables=tables,
            num_threads=threads,
            unpinned=unpinned,
        )
    stated = model.stated_options
    taken = {name: value for name, value in stated.items() if name not in given}
    if taken:
        where = model.describe()["sampling_from"]
        note(f"sampling as the model's authors state it in {where}: {in_words(taken)}")
    return model, {**_USUAL, **stated, **given}


@click.command(epilog=_GENERATE_EXAMPLES)
@model_argument
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("--prompt", help="The same as PROMPT; - reads it from standard input.")
@click.option(
    "--prompt-cache",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Go on from this file if the prompt begins as the one in it; made of the prompt if it is not there.",
)
@click.option(
    "--special",
    is_flag=True,
    help="Read names of special tokens in the prompt, such as <|im_end|>, as these; else they are text.",
)
@_generation_options
def generate(
    model: str,
    text: str | None,
    prompt: str | None,
    prompt_cache: Path | None,
    special: bool,
    *,
    as_json: bool,
    **values: Any,
) -> None:
    """Print what MODEL writes after PROMPT.

    MODEL is a directory, a .gguf or .onnx file, a name that `nanochat models list` shows, or OWNER/NAME on the Hugging
    Face Hub, perhaps with @REVISION and :PART, as for `nanochat models pull`.
    Ctrl-C ends the text where it is.
    """
    from nanochat.generation.options import tokens_after

    prompt = _one_of(text, prompt, "PROMPT", "--prompt")
    if prompt is None:
        raise click.UsageError("there is no prompt: write it behind MODEL, or pass --prompt")
    text = _standard_input() if prompt == "-" else prompt
    loaded, options = _load(model, **values)
    prompt_ids = loaded.encode_prompt(text, special=special)
    if prompt_cache is not None:
        # Before a prompt is read for nothing.
        tokens_after(len(prompt_ids), options.get("max_tokens"), loaded.config)
        options["cache"] = _cache(loaded, prompt_cache, prompt_ids)
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
@click.argument("text", required=False, metavar="[MESSAGE]")
@click.option("--message", help="The same as MESSAGE.")
@click.option("--system", help="What the model is told before the conversation.")
@click.option(
    "--template",
    type=click.File(encoding="utf-8"),
    help="A chat template in Jinja, to be used instead of the model's; - reads it from standard input.",
)
@click.option(
    "--think/--no-think",
    "thinking",
    default=None,
    help="Let the model think before it answers, or not, if its chat template has a switch for that.  "
    "[default: as the catalog says, or the template does]",
)
@click.option(
    "--thinking-budget",
    type=click.IntRange(min=0),
    help="Most tokens of thoughts, after which the model is made to answer; 0 ends them at once.  [default: no limit]",
)
@_generation_options
def chat(
    model: str,
    text: str | None,
    message: str | None,
    system: str | None,
    template: TextIO | None,
    thinking: bool | None,
    thinking_budget: int | None,
    *,
    as_json: bool,
    **values: Any,
) -> None:
    """Talk with MODEL, or print its answer to one MESSAGE.

    What is said stays in the conversation until the context is full. What the model thinks is shown apart, on standard
    error.

    MODEL is a directory, a .gguf or .onnx file, a name that `nanochat models list` shows, or OWNER/NAME on the Hugging
    Face Hub, perhaps with @REVISION and :PART, as for `nanochat models pull`.
    """
    from nanochat.text.chat import template_of

    message = _one_of(text, message, "MESSAGE", "--message")
    if as_json and message is None:
        raise click.UsageError("--json prints one answer: write a message behind MODEL, too")
    if message == "":
        raise InputError("the message is empty: ask something, or leave it out for a conversation")
    jinja = None if template is None else template.read()
    loaded, options = _load(model, **values)
    usage = loaded.usage
    if usage.chats is False:
        example = shlex.quote(usage.example or "Once upon a time")
        note(
            f"{model} was not trained to chat, as its card says: it continues texts. Try: nanochat generate "
            f"{shlex.quote(model)} {example}"
        )
    if thinking is None and thinking_budget is None:
        thinking = meant_to_think(model, template_of(loaded.tokenizer, jinja))
    conversation = _Conversation(
        loaded,
        options,
        system,
        {"chat_template": jinja, "thinking": thinking, "thinking_budget": thinking_budget},
    )
    if message is None:
        _converse(conversation)
        return
    output = conversation.ask(message)
    output.show(silent=as_json)
    if as_json:
        summary = {"reasoning": output.reasoning, **output.summary(conversation.length)}
        print_json({"model": model, "message": message, **summary})
    else:
        write("\n")
    output.pass_interrupt_on()


def _cache(model: "Model", path: Path, ids: list[int]) -> "PromptCache":
    """What the file has, or, if it is not there, what the model reads of the prompt now, and keeps in it."""
    if not path.exists():
        # The last token is read again, for what follows it.
        count = model.save_cache(path, ids[:-1] or ids)
        note(f"wrote {path}, {counted(count, 'token')}")
    return model.load_cache(path)


def _one_of(text: str | None, option: str | None, name: str, flag: str) -> str | None:
    if text is not None and option is not None:
        raise click.UsageError(f"{name} and {flag} are two ways to say the same: leave one out")
    return option if text is None else text


class _Output:
    """The pieces of one text, counted and timed on their way to the user."""

    def __init__(self, pieces: "Generator[Piece, None, None]") -> None:
        self.text = self.reasoning = ""
        self._pieces = pieces
        self._num_tokens = 0
        self._finish_reason = ""
        self._first_seconds = 0.0
        self._warm_seconds = 0.0
        self._seconds = 0.0

    def show(self, *, silent: bool = False) -> None:
        """Let the text come, and print it unless `silent`; Ctrl-C ends it where it is."""
        start = time.perf_counter()
        try:
            for piece in self._pieces:
                self._seconds = time.perf_counter() - start
                self._first_seconds = self._first_seconds or self._seconds
                self._num_tokens += 1
                if self._num_tokens == _WARM_TOKENS:
                    self._warm_seconds = self._seconds
                self._finish_reason = piece.finish_reason or self._finish_reason
                if not silent:
                    self._show(piece)
                self.text += piece.text
                self.reasoning += piece.reasoning
        except KeyboardInterrupt:
            self._finish_reason = "interrupted"
            # It may have come while a piece was written, and the session waits for the next question.
            self._pieces.close()

    def _show(self, piece: "Piece") -> None:
        if piece.reasoning:
            if not self.reasoning:
                note("(thinking)")
            show_thought(piece.reasoning)
        if (self.reasoning or piece.reasoning) and not self.text:
            if piece.text:
                note("\n(answering)")
            elif piece.finish_reason == "length":
                note(
                    "\n(no answer, for thoughts took all tokens: pass a larger --max-tokens, or a --thinking-budget)"
                )
            elif piece.finish_reason is not None:
                note("\n(no answer: the model ended its turn inside a thought)")
        if piece.text:
            write(piece.text)

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
            "tokens_per_second": None if self._rate is None else round(self._rate, 3),
        }

    @property
    def _rate(self) -> float | None:
        """Tokens a second of decoding alone, if there were enough."""
        if self._num_tokens <= _WARM_TOKENS:
            return None
        return (self._num_tokens - _WARM_TOKENS) / (self._seconds - self._warm_seconds)

    def sentence(self) -> str:
        """The same for people."""
        tokens = "1 token" if self._num_tokens == 1 else f"{self._num_tokens} tokens"
        parts = [f"{tokens}, the first after {self._first_seconds:.2f} s"]
        if self._rate is not None:
            parts.append(f"from the fourth on {self._rate:,.1f} tokens/s")
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

    def __init__(
        self,
        model: "Model",
        options: "GenerationOptions",
        system: str | None,
        template: "TemplateOptions",
    ) -> None:
        from nanochat.text.chat import template_of, thinking_variables

        self.length = 0
        self.turns: list[Message] = []
        self._model = model
        self._options = options
        # Better refused now than at every question.
        tokenizer, given = model.tokenizer, template.get("chat_template")
        thinking_variables(
            template_of(tokenizer, given),
            thinking=template.get("thinking"),
            budget=template.get("thinking_budget"),
        )
        self._template = template
        # Each turn reads what the turns before have not.
        self._session = model.session(rows=1)
        self._system: list[Message] = []
        if system is not None:
            self._system = [{"role": "system", "content": system}]

    def ask(self, text: str) -> _Output:
        """Add a message of the user, and begin the answer to it."""
        from nanochat.text.chat import chat_prompt

        turns: list[Message] = [*self.turns, {"role": "user", "content": text}]
        while True:
            prompt = chat_prompt([*self._system, *turns], self._model.tokenizer, **self._template)
            options: GenerationOptions = {**self._options, "thoughts": prompt.thoughts}
            try:
                output = _Output(self._session.pieces([prompt.ids], **options))
            except ContextLengthError:
                if len(turns) < 3:
                    raise
                turns = turns[2:]
                note("(the context is full: the oldest question and its answer are forgotten)")
            else:
                self.length, self.turns = len(prompt.ids), turns
                return output


def _converse(conversation: _Conversation) -> None:
    from nanochat.text.messages import answer_message

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
            conversation.turns.append(answer_message(output.text, output.reasoning))
            write("\n")
