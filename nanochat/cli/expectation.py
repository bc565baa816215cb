"""This file holds what a model would take and give on this machine, as `nanochat models` tells it before a download."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanochat.cli.doctor import measured_bandwidth
from nanochat.cli.output import format_bytes, note, print_table, write

if TYPE_CHECKING:
    from nanochat.backends.numba.tuning.bandwidth import Bandwidth
    from nanochat.config import ModelConfig
    from nanochat.cost import Cost
    from nanochat.ops import Storage

__all__ = ["CONTEXTS", "expect", "in_short", "print_expectation"]

# Tokens of the texts for which memory and speed are told, where the model knows as many: an answer, a conversation, a
# book.
CONTEXTS = (256, 4096, 32768)
_ANSWER, _CONVERSATION = CONTEXTS[:2]
# Whose speed is that of reading the weights, which is measured.
_MEASURED = "numba"
# Weights that caches may hold, and next to which the work between products is not small.
_LEAST_BYTES = 2**26


def expect(
    config: "ModelConfig", *, name: str, backend: str, contexts: Sequence[int] = ()
) -> dict[str, object]:
    """Memory, and the speed of decoding alone, for texts of so many tokens, ready for JSON.

    Parameters
    ----------
    contexts : sequence of int
        Empty is `CONTEXTS`, or the model's own where that is shorter. What is beyond it is warned of.
    """
    from nanochat.cost import cost
    from nanochat.memory import free_bytes, longest_context, rooms

    free = free_bytes()
    known = measured_bandwidth() if backend == _MEASURED else None
    trained = config.context_length
    texts = sorted({*contexts} or {min(context, trained) for context in CONTEXTS})
    for context in texts:
        if context > trained:
            note(
                f"warning: a text of {context} tokens is beyond the {trained} that {name} was trained for: this "
                f"package ends its texts there"
            )
    # What lies beyond is counted as if there were no end.
    wide = dataclasses.replace(config, context_length=max(trained, *texts))
    rows = []
    for room in rooms(wide, backend, contexts=texts, free=free):
        costs = cost(wide, context=room.context, kv_cache=room.kv_cache)
        rows.append(
            {
                **dataclasses.asdict(room),
                "read_bytes_per_token": costs.read_bytes_per_token,
                "tokens_per_second": _speed(costs, room.kv_cache, known),
            }
        )
    storages: dict[Storage, None] = {row["kv_cache"]: None for row in rows}
    return {
        "backend": backend,
        "free_bytes": free,
        "bandwidth": None if known is None else dataclasses.asdict(known),
        "memory": rows,
        "longest_context": None
        if free is None
        else {one: longest_context(config, backend, kv_cache=one, free=free) for one in storages},
    }


def print_expectation(expected: dict[str, object]) -> None:
    """Print the same for people, with what to do where something does not fit."""
    rows, free, longest = expected["memory"], expected["free_bytes"], expected["longest_context"]
    assert isinstance(rows, list)
    here = "unknown" if not isinstance(free, int) else format_bytes(free)
    write(f"\nOn backend {expected['backend']}, with {here} of memory free:\n")
    print_table(
        [
            (
                row["context"],
                row["kv_cache"],
                format_bytes(row["bytes"]),
                {True: "yes", False: "no", None: "unknown"}[row["fits"]],
                format_bytes(row["read_bytes_per_token"]),
                _in_words(row["tokens_per_second"]),
            )
            for row in rows
        ],
        header=("context", "kv-cache", "memory", "fits", "read a token", "tokens/s"),
    )
    if not isinstance(longest, dict) or all(row["fits"] for row in rows):
        return
    fitting = {one: tokens for one, tokens in longest.items() if tokens}
    if fitting:
        texts = ", ".join(
            f"{tokens} tokens with --kv-cache {one}" for one, tokens in fitting.items()
        )
        write(f"the longest texts that fit: {texts}\n")
    else:
        write(
            "it does not fit, however short the text: close other programs, or choose a model that `nanochat models "
            "list` says fits\n"
        )


def in_short(config: "ModelConfig | None", size: int, *, backend: str, free: int | None) -> str:
    """Whether a model fits with a text of 4096 tokens, and how fast a short one would be, in a word or two.

    Without its configuration, all that is known is the size of its files.
    """
    from nanochat.cost import cost
    from nanochat.memory import rooms

    if free is None or config is None:
        return f"needs over {format_bytes(size)}" if free is not None and size > free else "unknown"
    context = min(_CONVERSATION, config.context_length)
    found = rooms(config, backend, contexts=(context,), free=free)
    first = next((room for room in found if room.fits), None)
    if first is None:
        return f"needs {format_bytes(min(room.bytes for room in found))}"
    fits = "fits" if first is found[0] else f"fits with {first.kv_cache}"
    known = None
    if backend == _MEASURED:
        # What must be measured first is told by `show`.
        from nanochat.backends.numba.tuning.bandwidth import known as known_bandwidth

        known = known_bandwidth()
    short = cost(config, context=min(_ANSWER, context), kv_cache=first.kv_cache)
    speed = _speed(short, first.kv_cache, known)
    return fits if speed is None else f"{fits}, {_in_words(speed)} tokens/s"


def _speed(costs: "Cost", kv_cache: "Storage", known: "Bandwidth | None") -> float | None:
    """Tokens a second, where they are bound by memory."""
    if known is None or costs.weight_bytes_per_token < _LEAST_BYTES:
        return None
    attention = known.int4_attention if kv_cache == "int4" else known.attention
    seconds = costs.seconds_per_token(weights=known.weights, read=known.read, attention=attention)
    return round(1 / seconds, 2)


def _in_words(speed: float | None) -> str:
    return "unknown" if speed is None else f"{speed:.3g}"
