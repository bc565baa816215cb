"""This file holds the chat format: messages in, tokens out.

::

    <|bos|> <|user|> Hello <|end|> <|assistant|> Hi <|end|> <|user|> Bye <|end|> <|assistant|>

`nanochat.text.tokenizer.CHAT_TEMPLATE` says the same in Jinja, for other runtimes. Only here are contents
data: a runtime that renders text first reads ``<|end|>`` in a message as the end of the turn.

Other people's models bring their own format as such a template. Contents are data there, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from os.path import commonprefix
from typing import Any

from nanochat.errors import FormatError, InputError
from nanochat.text.codec import TextCodec
from nanochat.text.messages import (
    Message,
    checked_messages,
    checked_tools,
    plain,
    text_of,
    with_argument_texts,
    with_texts,
)
from nanochat.text.thinking import Thoughts, check_budget, marks_of, require_marks
from nanochat.text.tokenizer import Tokenizer

__all__ = [
    "ChatPrompt",
    "Message",
    "chat_prompt",
    "render",
    "render_text",
    "render_turns",
    "template_of",
    "thinking_variables",
]

# What a template is given besides.
_GIVEN = {"add_generation_prompt", "messages", "tools"}
# Variables by which templates let a model think, or not.
_SWITCHES = ("enable_thinking", "thinking")


@dataclass(frozen=True, kw_only=True)
class ChatPrompt:
    """The tokens of a conversation that the model shall answer, and how its thoughts are told from the answer."""

    ids: list[int]
    thoughts: Thoughts | None


def render(
    messages: str | Sequence[Message],
    tokenizer: TextCodec,
    *,
    reply: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the tokens of a conversation.

    Parameters
    ----------
    messages : str or sequence of Message
        At least one; a text is one of the user's.
    reply : bool
        True opens a turn of the assistant at the end, for the model to fill.
    tools : sequence of mapping, optional
        JSON schemas of functions that the model may ask for, if its template knows tools.
    chat_template : str, optional
        A template in Jinja; absent is the model's.
    chat_template_kwargs : mapping, optional
        Further variables of the template, such as ``{"enable_thinking": False}``.

    Raises
    ------
    FormatError
        If the template fails.
    InputError
        If a message is malformed, or is none for this model.

    Examples
    --------
    >>> tokenizer = Tokenizer.train(["hi"], vocab_size=263)
    >>> tokens = render("hi", tokenizer)
    >>> tokenizer.decode(tokens, skip_specials=False)
    '<|bos|><|user|>hi<|end|><|assistant|>'
    """
    schemas, variables = checked_tools(tools), _checked_variables(chat_template_kwargs)
    template = template_of(tokenizer, chat_template)
    if chat_template is None and isinstance(tokenizer, Tokenizer):
        if schemas or variables:
            raise InputError(
                f"this model's chat format knows no {'tools' if schemas else next(iter(variables))}: leave them out, "
                "or pass a chat_template that does"
            )
        turns = render_turns(checked_messages(messages), tokenizer)
        tokens = [tokenizer.bos, *chain.from_iterable(turns)]
        return [*tokens, tokenizer.assistant] if reply else tokens
    conversation = _Conversation(template, messages, tokenizer, {**variables, "tools": schemas})
    return conversation.tokens(reply=reply)


def render_text(
    messages: str | Sequence[Message], tokenizer: TextCodec, *, reply: bool = True
) -> str:
    """Return the text of a conversation, for programs that pass prompts on as texts.

    Whoever reads it with the names of special tokens in it cannot tell which of them a message held; see `render`.

    Examples
    --------
    >>> tokenizer = Tokenizer.train(["hi"], vocab_size=263)
    >>> render_text("hi", tokenizer)
    '<|bos|><|user|>hi<|end|><|assistant|>'
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.decode(render(messages, tokenizer, reply=reply), skip_specials=False)
    conversation = _Conversation(tokenizer.chat_template, messages, tokenizer, {"tools": None})
    return conversation.text(reply=reply)


def chat_prompt(
    messages: str | Sequence[Message],
    tokenizer: TextCodec,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    thinking: bool | None = None,
    thinking_budget: int | None = None,
) -> ChatPrompt:
    """Return what the model shall answer, and how to read the answer.

    Parameters
    ----------
    messages, tools, chat_template, chat_template_kwargs
        See `render`.
    thinking : bool, optional
        Whether the model shall think before it answers, if its template can be told so; absent is as the template does.
    thinking_budget : int, optional
        Most tokens of thoughts, after which they are ended; absent is as many as the model likes.

    Raises
    ------
    FormatError
        If the template fails.
    InputError
        If a message is malformed, or is none for this model, or its template knows no thinking that was asked for.
    """
    template = template_of(tokenizer, chat_template)
    variables = chat_template_kwargs
    chosen = thinking_variables(template, thinking=thinking, budget=thinking_budget)
    if chosen:
        given = _checked_variables(variables)
        for name in chosen.keys() & given.keys():
            raise InputError(
                f"thinking={thinking} and chat_template_kwargs with {name!r} say the same: pass one of them"
            )
        variables = {**given, **chosen}
    marks = marks_of(template)
    if marks is None:
        ids = render(
            messages,
            tokenizer,
            tools=tools,
            chat_template=chat_template,
            chat_template_kwargs=variables,
        )
        return ChatPrompt(ids=ids, thoughts=None)
    conversation = _Conversation(
        template,
        messages,
        tokenizer,
        {**_checked_variables(variables), "tools": checked_tools(tools)},
    )
    _, opening, rest = conversation.opening(marks.opening).rpartition(marks.opening)
    ended = marks.closing in rest
    thoughts = Thoughts(
        marks=marks,
        begun=rest if opening and not ended else None,
        ended=ended,
        budget=thinking_budget,
    )
    return ChatPrompt(ids=conversation.tokens(reply=True), thoughts=thoughts)


def thinking_variables(
    template: str, *, thinking: bool | None, budget: int | None
) -> dict[str, bool]:
    """The variables that tell a template whether its model shall think; none where nobody asks, or it always thinks.

    Raises
    ------
    InputError
        If it knows no thinking that was asked for, or cannot do without.
    """
    check_budget(budget)
    if budget is not None:
        require_marks(template, f"thinking_budget={budget} (--thinking-budget)")
    if thinking is None:
        return {}
    if not isinstance(thinking, bool):
        raise InputError(
            f"thinking={thinking!r:.80}: pass True, False, or None for the model's way"
        )
    if thinking:
        require_marks(template, "thinking=True (--think)")
    if marks_of(template) is None:
        return {}
    from nanochat.text.template import template_variables

    switch = next((name for name in _SWITCHES if name in template_variables(template)), None)
    if switch is not None:
        return {switch: thinking}
    if not thinking:
        raise InputError(
            "thinking=False (--no-think), but this model's chat template has no switch for it: pass thinking_budget=0 "
            "(--thinking-budget 0), which ends every thought at once"
        )
    return {}


def render_turns(
    messages: Sequence[Mapping[str, object]], tokenizer: Tokenizer
) -> Iterator[list[int]]:
    """Yield the tokens of each turn in our own format, from that of its role to that of its end.

    Raises
    ------
    InputError
        If it is a tool's, or asks for one.
    """
    system = tokenizer.system
    turns = {
        "system": system,
        "developer": system,
        "user": tokenizer.user,
        "assistant": tokenizer.assistant,
    }
    for index, message in enumerate(messages):
        role = turns.get(str(message["role"]))
        if role is None or "tool_calls" in message:
            raise InputError(
                f"message {index} is a tool's or asks for one, and this model's chat format has none: leave it out, "
                "or pass a chat_template that has them"
            )
        yield [role, *tokenizer.encode(text_of(message["content"])), tokenizer.end]


def template_of(tokenizer: TextCodec, given: object) -> str:
    """The template in use; empty for our own format, which needs none."""
    if given is not None and not isinstance(given, str):
        raise InputError(f"chat_template is {given!r:.80}: pass the text of a template")
    if given is not None or not isinstance(tokenizer, Tokenizer):
        return tokenizer.chat_template if given is None else given
    return ""


def _checked_variables(given: object) -> dict[str, object]:
    if given is not None and not isinstance(given, Mapping):
        raise InputError(
            f"chat_template_kwargs is {given!r:.80}: pass a mapping, such as "
            '{"enable_thinking": False}'
        )
    variables = {
        str(name): plain(value, "chat_template_kwargs") for name, value in (given or {}).items()
    }
    for name in _GIVEN & variables.keys():
        raise InputError(
            f"chat_template_kwargs holds {name!r}, which has an argument of its own: pass it as that"
        )
    return variables


class _Conversation:
    """A conversation as a template writes it."""

    def __init__(
        self,
        template: str,
        messages: str | Sequence[Message],
        tokenizer: TextCodec,
        variables: Mapping[str, object],
    ) -> None:
        # Late, because our own models need no template's language.
        from nanochat.text.shield import Shield

        if not template:
            raise InputError(
                "this model brings no chat template, so its format of conversations is unknown: pass one as "
                "chat_template (--template FILE), or write the prompt in that format and generate with special=True "
                "(--special)"
            )
        checked = checked_messages(messages, template=template)
        self._template = template
        self._shield = Shield(tokenizer, [checked, variables])
        self._messages: Any = self._shield.mark(checked)
        given: Any = self._shield.mark(variables)
        names = {token: name for name, token in tokenizer.specials.items()}
        roles = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
        special = {role: names[token] for role, token in roles.items() if token in names}
        self._names = {**special, **given}
        self._texts: dict[bool, str] = {}

    def tokens(self, *, reply: bool) -> list[int]:
        """Its tokens, with or without the opening of the assistant's turn."""
        return self._shield.tokens(self._text(reply=reply))

    def text(self, *, reply: bool) -> str:
        """Its text, in which nothing tells special tokens from their names."""
        return self._shield.plain(self._text(reply=reply))

    def opening(self, mark: str) -> str:
        """What the template writes to open the assistant's turn, or only this mark of it."""
        text = self._text(reply=True)
        if text == self._text(reply=False):
            # Some open the turn whether they are asked to or not, and may write no more behind the mark.
            start = text.rfind(mark)
            return "" if start < 0 or text[start + len(mark) :].strip() else text[start:]
        # By characters, as is meant.
        shared = commonprefix([text, self._text(reply=False)])  # noqa: RUF071
        return text[len(shared) :]

    def _text(self, *, reply: bool) -> str:
        if reply not in self._texts:
            self._texts[reply] = self._written(reply)
        return self._texts[reply]

    def _written(self, reply: bool) -> str:
        if not any(isinstance(message.get("content"), list) for message in self._messages):
            return self._rendered(self._messages, reply)
        # Many templates know texts only, and fail at parts or write them as Python does.
        try:
            text = self._rendered(self._messages, reply)
        except FormatError:
            return self._rendered(with_texts(self._messages), reply)
        if "{'type': 'text', 'text': " in text:
            return self._rendered(with_texts(self._messages), reply)
        return text

    def _rendered(self, messages: list[dict[str, object]], reply: bool) -> str:
        from nanochat.text.template import render_template

        render = partial(render_template, self._template, names=self._names, reply=reply)
        try:
            return render(messages)
        except FormatError:
            if not any("tool_calls" in message for message in messages):
                raise
            # Most templates want what arguments say, and some their text.
            return render(with_argument_texts(messages))
