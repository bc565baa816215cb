"""This file holds the program that `bench.memory` watches: it loads a model, generates, and says which stage begins.

``python -m bench.memory_probe DIRECTORY BACKEND TOKENS`` waits for a line after the name of each stage.
"""

import gc
import sys

import numpy as np

__all__ = ["STAGES", "main"]

STAGES = ("backend", "load", "prompt", "generate")
_SMALL = "nanochat-tiny"


def main(directory: str, backend: str, num_tokens: int) -> None:
    """Go through all stages; a text has `num_tokens` tokens, the answer's two included."""
    import nanochat

    _begin("backend")
    small = nanochat.from_pretrained(_SMALL, backend=backend)
    small.generate("fn", max_tokens=2)
    del small
    gc.collect()
    _begin("load")
    model = nanochat.from_pretrained(directory, backend=backend)
    _begin("prompt")
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, num_tokens - 2).tolist()
    state, logits = model.engine.prefill(ids, capacity=num_tokens)
    _begin("generate")
    for _ in range(2):
        logits = model.engine.decode([int(logits.argmax())], state)[0]
    _begin("end")


def _begin(stage: str) -> None:
    print(stage, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
