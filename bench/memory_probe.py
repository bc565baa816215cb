"""This file holds the program that `bench.memory` watches: it loads a model, generates, and says which stage begins.

``python -m bench.memory_probe DIRECTORY BACKEND TOKENS ANSWER SAMPLING`` waits for a line after the name of each stage.
"""

import gc
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["STAGES", "main"]

STAGES = ("backend", "load", "prompt", "generate")
_SMALL = "nanochat-tiny"


def main(
    directory: str, backend: str, num_tokens: int, answer: int, sampling: Mapping[str, Any]
) -> None:
    """Go through all stages; a text has `num_tokens` tokens, those of the answer included.

    They are drawn as `nanochat.generation.sampling.Sampling` says, or are the most probable ones if that is empty.
    """
    import nanochat
    from nanochat.generation.sampling import Sampler, Sampling

    _begin("backend")
    small = nanochat.from_pretrained(_SMALL, backend=backend)
    small.generate("fn", max_tokens=2)
    del small
    gc.collect()
    _begin("load")
    model = nanochat.from_pretrained(directory, backend=backend)
    _begin("prompt")
    ids = (
        np.random.default_rng(0).integers(0, model.config.vocab_size, num_tokens - answer).tolist()
    )
    state, logits = model.engine.prefill(ids, capacity=num_tokens)
    _begin("generate")
    if sampling:
        sampler, size = Sampler(Sampling(**sampling)), model.config.vocab_size
        token = sampler.next(logits)
        for _ in range(answer):
            sampler.push(token)
            step = model.engine.draw(state, state.rows, [[token]], [sampler], vocab_size=size)
            token = int(step.tokens[0])
    else:
        for _ in range(answer):
            logits = model.engine.decode([int(logits.argmax())], state)[0]
    _begin("end")


def _begin(stage: str) -> None:
    print(stage, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))
