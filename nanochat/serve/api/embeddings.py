"""This file holds embeddings: texts in, vectors out.

References
----------
.. [1] OpenAI, API reference, "Create embeddings"; its Python client asks for base64 by default.
"""

import base64
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.serve.api.completions import prompts_of
from nanochat.serve.api.errors import ApiError
from nanochat.serve.api.schema import EmbeddingRequest
from nanochat.serve.served import Served

__all__ = ["embeddings_answer"]


async def embeddings_answer(request: EmbeddingRequest, served: Served) -> dict[str, Any]:
    """The vector of each text, of length 1; texts that are being written go on between two of them."""
    if request.dimensions is not None and request.dimensions != served.model.config.width:
        raise ApiError(
            400,
            f"dimensions is {request.dimensions}, but this model's vectors have {served.model.config.width}",
            param="dimensions",
        )
    prompts = prompts_of(request.input, served.tokenizer, param="input")
    pooling = request.pooling or "mean"
    vectors = [
        await served.engine.call(partial(served.model.embed, ids, pooling=pooling))
        for ids in prompts
    ]
    count = sum(map(len, prompts))
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(vector, request)}
            for index, vector in enumerate(vectors)
        ],
        "model": request.model or served.id,
        "usage": {"prompt_tokens": count, "total_tokens": count},
    }


def _written(vector: NDArray[np.float32], request: EmbeddingRequest) -> str | list[float]:
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector]
