"""This file holds the case `backends`: how fast each backend runs the shipped model, one after the other in turns.

Timed are whole calls of `Model.generate`, less their first token, and prefill of a long prompt. Kernels at the limit of
the machine, and other systems as peers, are another case.
"""

import time
from collections.abc import Iterator
from statistics import median

import numpy as np

from bench.parity import require
from bench.result import Result, table
from nanochat import backends, from_pretrained
from nanochat.lm import Model

__all__ = ["run", "table"]

_MODEL = "nanochat-tiny"
_PROMPT_TOKENS = 256


def run(quick: bool) -> Iterator[Result]:
    """Decode and prefill of every backend that can run here, with the reference as the peer."""
    names = [name for name in backends.BACKENDS if backends.unavailable(name) is None]
    for name in names:
        # A graph has no operations to compare one by one; `parity --exports` compares it as a whole.
        if name in backends.names():
            require(name)
    models = {name: from_pretrained(_MODEL, backend=name) for name in names}
    rounds, tokens = (3, 8) if quick else (20, 32)
    ids = np.random.default_rng(0).integers(7, 4096, _PROMPT_TOKENS).tolist()
    seconds: dict[str, dict[str, list[float]]] = {
        what: {name: [] for name in models} for what in ("decode", "prefill")
    }
    for model in models.values():
        _decode(model, 2)
        model.logits(ids)
    for _ in range(rounds):
        for name, model in models.items():
            seconds["decode"][name].append(_decode(model, tokens))
            begin = time.perf_counter()
            model.logits(ids)
            seconds["prefill"][name].append((time.perf_counter() - begin) / len(ids))
    for what, of in seconds.items():
        peer = 1 / median(of["reference"])
        for name in models:
            rate = 1 / median(of[name])
            spread = 1 / max(of[name]), 1 / min(of[name])
            yield Result(
                case="backends",
                what=f"{what}, {name} ({spread[0]:.0f} to {spread[1]:.0f})",
                unit="tokens/s",
                ours=rate,
                peer=peer,
                peer_name="reference",
                ratio=rate / peer,
            )

    yield from _texts(models, seeds=8 if quick else 64)


def _texts(models: dict[str, Model], *, seeds: int) -> Iterator[Result]:
    """Of sampled texts with equal seeds, the share that is not the same as on the reference to its last token."""
    prompts = ["fn main() {", "pub struct Point {", "impl fmt::Display for", "// Returns"]
    texts = {
        name: model.generate(prompts * (seeds // 4), max_tokens=40, temperature=0.7)
        for name, model in models.items()
    }
    for name, written in texts.items():
        pairs = list(zip(written, texts["reference"], strict=True))
        yield Result(
            case="backends",
            what=f"sampled texts of 40 tokens that part from the reference's, {name}",
            unit="share",
            ours=sum(one != other for one, other in pairs) / len(pairs),
        )


def _decode(model: Model, tokens: int) -> float:
    """Median seconds from one token to the next."""
    ids = model.encode_prompt("fn main() {")
    pieces = model.pieces([ids], max_tokens=tokens + 1, temperature=0.0)
    times = [time.perf_counter() for _ in pieces]
    return median(np.diff(times))
