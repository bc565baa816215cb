"""This file holds the chat format: messages in, tokens out.

::

    <|bos|> <|user|> Hello <|end|> <|assistant|> Hi <|end|> <|user|> Bye <|end|> <|assistant|>

`nanochat.tokenizer.CHAT_TEMPLATE` says the same in Jinja, for other runtimes. Only here are contents
data: a runtime that renders text first reads ``<|end|>`` in a message as the end of the turn.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

from nanochat.errors import InputError
from nanochat.tokenizer import Tokenizer

__all__ = ["Message", "render"]


class Message(TypedDict):
    """One turn of a conversation.

    Attributes
    ----------
    role : {"system", "user", "assistant"}
        Who speaks.
    content : str
        What is said; names of special tokens in it are text.
    """

    role: Literal["system", "user", "assistant"]
    content: str


def render(messages: Sequence[Message], tokenizer: Tokenizer, *, reply: bool = True) -> list[int]:
    """Return the tokens of a conversation.

    Parameters
    ----------
    messages : sequence of Message
        At least one.
    tokenizer : Tokenizer
        Encodes the contents.
    reply : bool
        True opens a turn of the assistant at the end, for the model to fill.

    Raises
    ------
    InputError
        If there is no message, or a message has another role or contents that are not a string.

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
    roles = {
        "system": tokenizer.system,
        "user": tokenizer.user,
        "assistant": tokenizer.assistant,
    }
    tokens = [tokenizer.bos]
    for index, message in enumerate(messages):
        role, content = _fields(index, message)
        if not isinstance(role, str) or role not in roles:
            raise InputError(f"message {index} has role {role!r:.40}: use one of {list(roles)}")
        if not isinstance(content, str):
            raise InputError(
                f"the content of message {index} is {content!r:.80}: pass a string, and only text"
            )
        tokens += [roles[role], *tokenizer.encode(content), tokenizer.end]
    return [*tokens, tokenizer.assistant] if reply else tokens


def _fields(index: int, message: object) -> tuple[object, object]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise InputError(
            f'message {index} is {message!r:.80}: pass {{"role": "user", "content": "..."}}'
        )
    return message["role"], message["content"]
