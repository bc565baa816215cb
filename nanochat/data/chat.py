"""This file holds conversations as training data: the tokens of one, and which of them the assistant wrote.

The tokens are those that a model is given when it is asked, `nanochat.text.chat.render`, with the answer behind them.
"""

from collections.abc import Mapping

from nanochat.data.records import Record
from nanochat.errors import DataError, InputError
from nanochat.text.chat import render_turns
from nanochat.text.messages import checked_messages, text_of
from nanochat.text.tokenizer import Tokenizer

__all__ = ["Messages", "encode_chat", "messages_of", "text_of_chat"]

Messages = tuple[Mapping[str, object], ...]

# As ShareGPT's records name them.
_ROLES = {"human": "user", "gpt": "assistant"}


def messages_of(record: Record) -> Messages:
    """The conversation of a record: its ``messages``, or ShareGPT's ``conversations``."""
    fields = record.fields
    if isinstance(fields, str):
        raise DataError(
            f"{record.place}: a text, not a conversation: pass .jsonl or .parquet with messages in each record"
        )
    found = fields.get("messages")
    if found is None and isinstance(shared := fields.get("conversations"), list):
        found = [_message(each) for each in shared]
    if found is None:
        raise DataError(
            f"{record.place}: no messages, and no conversations as of ShareGPT, among its fields "
            f"{', '.join(map(str, fields)) or 'none'}: rename one, or leave out --chat"
        )
    try:
        return tuple(checked_messages(found))
    except InputError as error:
        raise DataError(f"{record.place}: {error}") from error


def text_of_chat(messages: Messages) -> str:
    """What is said, line by line."""
    return "\n".join(text_of(message.get("content")) for message in messages)


def encode_chat(
    messages: Messages, tokenizer: Tokenizer, place: str
) -> tuple[list[int], list[int]]:
    """The tokens of a conversation, and where each answer in it begins and ends, alternately.

    An answer is what the model is to write after the opening of its turn: the content, and the token that ends it.

    Examples
    --------
    >>> tokenizer = Tokenizer.train(["hi"], vocab_size=263)
    >>> chat = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": "h"})
    >>> tokens, (begin, end) = encode_chat(chat, tokenizer, "here")
    >>> tokenizer.decode(tokens, skip_specials=False), tokenizer.decode(tokens[begin:end], skip_specials=False)
    ('<|bos|><|user|>hi<|end|><|assistant|>h<|end|>', 'h<|end|>')
    """
    tokens, edges = [tokenizer.bos], list[int]()
    try:
        for turn in render_turns(messages, tokenizer):
            if turn[0] == tokenizer.assistant:
                edges += [len(tokens) + 1, len(tokens) + len(turn)]
            tokens += turn
    except InputError as error:
        raise DataError(f"{place}: {error}") from error
    return tokens, edges


def _message(found: object) -> object:
    """A message of ShareGPT's as others write it."""
    if not isinstance(found, Mapping):
        return found
    role = found.get("from")
    return {"role": _ROLES.get(str(role), role), "content": found.get("value")}
