"""This file holds the chat format: messages in, tokens out.

::

    <|bos|> <|user|> Hello <|end|> <|assistant|> Hi <|end|> <|user|> Bye <|end|> <|assistant|>

`nanochat.text.tokenizer.CHAT_TEMPLATE` says the same in Jinja, for other runtimes. Only here are contents
data: a runtime that renders text first reads ``<|end|>`` in a message as the end of the turn.

Other people's models bring their own format as such a template. Contents are data there, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.errors import FormatError, InputError
from nanochat.text.codec import TextCodec
from nanochat.text.messages import (
    Message,
    checked_messages,
    checked_tools,
    plain,
    text_of,
    with_texts,
)
from nanochat.text.tokenizer import Tokenizer

__all__ = ["Message", "render"]

# What a template is given besides.
_GIVEN = {"add_generation_prompt", "messages", "tools"}


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
    schemas = checked_tools(tools)
    if chat_template is not None and not isinstance(chat_template, str):
        raise InputError(f"chat_template is {chat_template!r:.80}: pass the text of a template")
    if chat_template_kwargs is not None and not isinstance(chat_template_kwargs, Mapping):
        raise InputError(
            f"chat_template_kwargs is {chat_template_kwargs!r:.80}: pass a mapping, such as "
            '{"enable_thinking": False}'
        )
    variables = {
        str(name): plain(value, "chat_template_kwargs")
        for name, value in (chat_template_kwargs or {}).items()
    }
    for name in _GIVEN & variables.keys():
        raise InputError(
            f"chat_template_kwargs holds {name!r}, which has an argument of its own: pass it as that"
        )
    if chat_template is None and isinstance(tokenizer, Tokenizer):
        if schemas or variables:
            raise InputError(
                f"this model's chat format knows no {'tools' if schemas else next(iter(variables))}: leave them out, "
                "or pass a chat_template that does"
            )
        return _render_own(checked_messages(messages), tokenizer, reply)
    template = tokenizer.chat_template if chat_template is None else chat_template
    if not template:
        raise InputError(
            "this model brings no chat template, so its format of conversations is unknown: pass one as chat_template "
            "(--template FILE), or write the prompt in that format and generate with special=True (--special)"
        )
    checked = checked_messages(messages, template=template)
    return _render_template(template, checked, tokenizer, reply, {**variables, "tools": schemas})


def _render_own(messages: list[dict[str, object]], tokenizer: Tokenizer, reply: bool) -> list[int]:
    system = tokenizer.system
    turns = {
        "system": system,
        "developer": system,
        "user": tokenizer.user,
        "assistant": tokenizer.assistant,
    }
    tokens = [tokenizer.bos]
    for index, message in enumerate(messages):
        role = turns.get(str(message["role"]))
        if role is None or "tool_calls" in message:
            raise InputError(
                f"message {index} is a tool's or asks for one, and this model's chat format has none: leave it out, "
                "or pass a chat_template that has them"
            )
        tokens += [role, *tokenizer.encode(text_of(message["content"])), tokenizer.end]
    return [*tokens, tokenizer.assistant] if reply else tokens


def _render_template(
    template: str,
    messages: list[dict[str, object]],
    tokenizer: TextCodec,
    reply: bool,
    variables: Mapping[str, object],
) -> list[int]:
    # Late, because our own models need no template's language.
    from nanochat.text.shield import Shield
    from nanochat.text.template import render_template

    shield = Shield(tokenizer, [messages, variables])
    marked: Any = shield.mark(messages)
    given: Any = shield.mark(variables)
    names = {token: name for name, token in tokenizer.specials.items()}
    roles = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    special = {role: names[token] for role, token in roles.items() if token in names}

    def text_with(conversation: list[dict[str, object]]) -> str:
        return render_template(template, conversation, names={**special, **given}, reply=reply)

    if not any(isinstance(message.get("content"), list) for message in messages):
        return shield.tokens(text_with(marked))
    # Many templates know texts only, and fail at parts or write them as Python does.
    try:
        text = text_with(marked)
    except FormatError:
        text = text_with(with_texts(marked))
    else:
        if "{'type': 'text', 'text': " in text:
            text = text_with(with_texts(marked))
    return shield.tokens(text)
