"""This file holds what a request asks of the sampler, as options of generation."""

import random
from collections.abc import Mapping
from typing import Any

from nanochat.generation.options import GenerationOptions
from nanochat.generation.sampling import SEEDS
from nanochat.serve.api.errors import ApiError
from nanochat.serve.api.schema import GenerationRequest
from nanochat.serve.served import Served

__all__ = ["asked_options", "wants_usage"]

# Fields that are called as the options are, and mean the same.
_SAME = (
    "ignore_eos",
    "frequency_penalty",
    "min_p",
    "min_tokens",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
    "cache_salt",
)
# Of a token's id: no vocabulary is so large, and longer numbers than 4300 digits are none to Python.
_MOST_DIGITS = 18


def asked_options(
    request: GenerationRequest, served: Served, *, num_prompts: int
) -> GenerationOptions:
    """The options that a request asks for, but for the number of tokens.

    What the model's authors state stands for fields that are absent.

    Raises
    ------
    ApiError
        If a field is wrong by itself.
    """
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options without stream: true", param="stream_options")
    options: GenerationOptions = {
        "temperature": 1.0,
        "draft": served.drafts,
        **served.model.stated_options,
    }
    for name in _SAME:
        value = getattr(request, name)
        if value is not None:
            options[name] = value  # type: ignore[literal-required]  # it is one of its names
    if request.logit_bias is not None:
        options["logit_bias"] = _bias(request.logit_bias)
    if request.prediction is not None:
        # More than the context cannot be said.
        predicted = served.tokenizer.encode(_predicted(request.prediction))[: served.context]
        options |= {"prediction": predicted} if served.drafts else {}
    seed = random.getrandbits(62) if request.seed is None else request.seed
    texts = num_prompts * (request.n or 1)
    options["seed"] = [(seed + number) % SEEDS for number in range(texts)]
    return options


def wants_usage(request: GenerationRequest) -> bool:
    """Whether a stream ends with the number of tokens."""
    return request.stream_options is not None and bool(request.stream_options.include_usage)


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for name, value in given.items():
        if not (name.isascii() and name.isdecimal() and len(name) <= _MOST_DIGITS):
            raise ApiError(
                400,
                f"logit_bias has the key {name!r:.40}: keys are ids of tokens",
                param="logit_bias",
            )
        found[int(name)] = value
    return found


def _predicted(prediction: Mapping[str, Any]) -> str:
    """The text of a prediction."""
    content = prediction.get("content")
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if prediction.get("type") != "content" or not isinstance(content, str):
        raise ApiError(
            400,
            'prediction is {"type": "content", "content": ...} with a string or parts of type text',
            param="prediction",
        )
    return content
