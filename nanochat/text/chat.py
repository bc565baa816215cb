"""This file holds the chat format: messages in, tokens out.

::

    <|bos|> <|user|> Hello <|end|> <|assistant|> Hi <|end|> <|user|> Bye <|end|> <|assistant|>

`nanochat.text.tokenizer.CHAT_TEMPLATE` says the same in Jinja, for other runtimes. Only here are contents
data: a runtime that renders text first reads ``<|end|>`` in a message as the end of the turn.

Other people's models bring their own format as such a template. Contents are data there, too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from nanochat.errors import InputError
from nanochat.text.codec import TextCodec
from nanochat.text.tokenizer import Tokenizer

__all__ = ["Message", "render"]


class Message(TypedDict):
    """One turn of a conversation; names of special tokens in the content are text."""

    role: Literal["system", "user", "assistant"]
    content: str


# A character that stands for no text may mark a place in one: Unicode leaves these 32 to programs.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


def render(messages: Sequence[Message], tokenizer: TextCodec, *, reply: bool = True) -> list[int]:
    """Return the tokens of a conversation.

    Parameters
    ----------
    messages : sequence of Message
        At least one.
    reply : bool
        True opens a turn of the assistant at the end, for the model to fill.

    Examples
    --------
    >>> tokenizer = Tokenizer.train(["hi"], vocab_size=263)
    >>> tokens = render([{"role": "user", "content": "hi"}], tokenizer)
    >>> tokenizer.decode(tokens, skip_specials=False)
    '<|bos|><|user|>hi<|end|><|assistant|>'
    """
    if isinstance(messages, str | dict) or not messages:
        raise InputError(
            f"messages is {messages!r:.80}: pass a list with at least one "
            '{"role": "user", "content": "..."}'
        )
    checked = [_checked(index, message) for index, message in enumerate(messages)]
    if not isinstance(tokenizer, Tokenizer):
        return _render_template(checked, tokenizer, reply)
    roles = {"system": tokenizer.system, "user": tokenizer.user, "assistant": tokenizer.assistant}
    tokens = [tokenizer.bos]
    for message in checked:
        tokens += [roles[message["role"]], *tokenizer.encode(message["content"]), tokenizer.end]
    return [*tokens, tokenizer.assistant] if reply else tokens


def _checked(index: int, message: object) -> Message:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise InputError(
            f'message {index} is {message!r:.80}: pass {{"role": "user", "content": "..."}}'
        )
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise InputError(
            f"message {index} has role {role!r:.40}: use one of system, user, assistant"
        )
    if not isinstance(content, str):
        raise InputError(
            f"the content of message {index} is {content!r:.80}: pass a string, and only text"
        )
    return {"role": role, "content": content}


def _render_template(messages: Sequence[Message], tokenizer: TextCodec, reply: bool) -> list[int]:
    # Late, because our own models need no template's language.
    from nanochat.text.template import render_template

    if not tokenizer.chat_template:
        raise InputError(
            "this model brings no chat template, so its format of conversations is unknown: use generate with a "
            "prompt in that format, or put a chat_template.jinja beside its tokenizer.json"
        )
    names = {token: name for name, token in tokenizer.specials.items()}
    roles = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "pad_token": tokenizer.pad}
    contents = [message["content"] for message in messages]
    mark = next((m for m in _MARKS if not any(m in content for content in contents)), "")
    if not mark:
        raise InputError("the messages hold every character from U+FDD0 to U+FDEF: leave one out")
    shielded = [
        {"role": message["role"], "content": _shield(message["content"], tokenizer.specials, mark)}
        for message in messages
    ]
    text = render_template(
        tokenizer.chat_template,
        shielded,
        names={role: names[token] for role, token in roles.items() if token in names},
        reply=reply,
    )
    if mark not in text:
        return tokenizer.encode(text, specials=True)
    pattern = "|".join(map(re.escape, sorted(tokenizer.specials, key=len, reverse=True)))
    tokens: list[int] = []
    for part in re.split(f"({pattern})", text):
        token = tokenizer.specials.get(part)
        tokens += tokenizer.encode(part.replace(mark, "")) if token is None else [token]
    return tokens


def _shield(content: str, specials: Mapping[str, int], mark: str) -> str:
    """Break up whatever could be read as a special token, alone or with what the template writes before or behind."""
    for name in specials:
        content = content.replace(name, f"{name[0]}{mark}{name[1:]}")
    text = content.strip()
    if any(text.endswith(name[:i]) for name in specials for i in range(1, len(name))):
        end = len(content.rstrip())
        content = content[:end] + mark + content[end:]
    if any(text.startswith(name[i:]) for name in specials for i in range(1, len(name))):
        start = len(content) - len(content.lstrip())
        content = content[:start] + mark + content[start:]
    return content
