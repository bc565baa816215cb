"""This file holds texts as tokens, and tokens as texts, over HTTP; lm-eval asks for both.

References
----------
.. [1] vLLM, "OpenAI-Compatible Server", tokenizer API; lm-eval 0.4.13, ``RemoteTokenizer``.
"""

from typing import Any

from nanochat.serve.api.errors import ApiError
from nanochat.serve.api.schema import DetokenizeRequest, TokenizeRequest
from nanochat.serve.served import Served
from nanochat.text.chat import render

__all__ = ["detokenized", "tokenized", "tokenizer_info"]


def tokenized(request: TokenizeRequest, served: Served) -> dict[str, Any]:
    """The tokens of a text, or of a conversation."""
    codec = served.tokenizer
    if (request.prompt is None) == (request.messages is None):
        raise ApiError(400, "pass either prompt or messages", param="prompt")
    if request.messages is not None:
        reply = request.add_generation_prompt is not False
        ids = render(request.messages, codec, reply=reply)  # type: ignore[arg-type]  # they are checked there
    else:
        assert request.prompt is not None
        opening = () if request.add_special_tokens is False else codec.opening
        ids = [*opening, *codec.encode(request.prompt)]
    return {"tokens": ids, "count": len(ids), "max_model_len": served.context}


def detokenized(request: DetokenizeRequest, served: Served) -> dict[str, Any]:
    """The text of tokens."""
    size = served.tokenizer.vocab_size
    for token in request.tokens:
        if not 0 <= token < size:
            raise ApiError(400, f"tokens holds {token}: ids are 0 to {size - 1}", param="tokens")
    return {"prompt": served.tokenizer.decode(request.tokens, skip_specials=False)}


def tokenizer_info(served: Served) -> dict[str, Any]:
    """What a client must know to encode by itself."""
    codec = served.tokenizer
    names = {token: name for name, token in codec.specials.items()}

    def name(token: int | None) -> str | None:
        return None if token is None else names.get(token)

    return {
        "tokenizer_class": type(codec).__name__,
        "vocab_size": codec.vocab_size,
        "bos_token": name(codec.bos),
        "eos_token": name(codec.eos),
        "pad_token": name(codec.pad if codec.pad is not None else codec.eos),
        "chat_template": codec.chat_template or None,
        "max_model_len": served.context,
    }
