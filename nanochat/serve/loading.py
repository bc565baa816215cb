"""This file holds the beginning of a server: its models are loaded, made ready for the first request, and rated."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanochat.generation.options import GenerationOptions
from nanochat.lm import Model
from nanochat.serve.app import Server
from nanochat.serve.engine import Answer
from nanochat.serve.served import Served, load_served

__all__ = ["ToServe", "load_models"]

# Rows for which kernels are compiled before the first request.
_WARM_ROWS = (1, 2, 4)
_WARM_PROMPT = 64
# Of a text whose rate is told: tokens, or as many as come in so many seconds.
_RATED_TOKENS, _RATED_SECONDS = 32, 3.0


@dataclass(frozen=True, kw_only=True)
class ToServe:
    """A model that shall be served: how it is loaded, and its names."""

    load: Callable[[], Model]
    names: Sequence[str]


async def load_models(
    server: Server, models: Sequence[ToServe], say: Callable[[str], None]
) -> None:
    """Load what a server shall serve, and let kernels be compiled before somebody waits for them.

    Parameters
    ----------
    say : callable
        Takes lines for people.

    Raises
    ------
    NanochatError
        If a model cannot be loaded.
    """
    found: dict[str, Served] = {}
    turn = threading.Lock()
    try:
        for one in models:
            say(f"loading {one.names[0]} ...")
            served = await load_served(
                one.load,
                names=one.names,
                settings=server.settings,
                turn=turn,
                died=server.engine_died.set,
            )
            found |= dict.fromkeys(one.names, served)
            await _warm(served)
            rate = await _rate(served)
            # What was written until now, nobody has asked for.
            served.engine.watch(server.metrics)
            say(f"{served.in_words}; one text alone gets about {rate:,.0f} tokens/s")
    except BaseException:
        for engine in {served.engine for served in found.values()}:
            await engine.stop()
        raise
    server.models = found


async def _warm(served: Served) -> None:
    """Have kernels compiled, and the steps that are repeated noted."""
    codec = served.tokenizer
    ids = [*codec.opening, *codec.encode("Hello")]
    sampled: GenerationOptions = {"temperature": 0.7, "top_p": 0.9, "ignore_eos": True}
    most = served.room.rows
    rows = {n for n in (*_WARM_ROWS, most) if n <= most}
    for n in sorted(rows):
        options: GenerationOptions = {**sampled, "n": n, "max_tokens": 4}
        await _written(served.engine.submit([ids], options, n=n))
    # And one that is read beside a text that is being written.
    room = served.context // 2
    beside = served.engine.submit([ids], {**sampled, "max_tokens": max(room // 4, 1)}, n=1)
    await beside.accepted()
    prompt = [*ids, *ids * (room // len(ids))][:_WARM_PROMPT]
    await _written(served.engine.submit([prompt], {**sampled, "max_tokens": 1}, n=1))
    beside.cancel()
    await _written(beside)


async def _rate(served: Served) -> float:
    """Tokens a second of one text, as somebody gets them who asks alone."""
    ids = [*served.tokenizer.opening, *served.tokenizer.encode("Hello")]
    most = min(_RATED_TOKENS, served.context - len(ids))
    answer = served.engine.submit([ids], {"max_tokens": most, "ignore_eos": True}, n=1)
    times = []
    # Until it is over, though it may be cancelled: nothing of it is left for those who ask then.
    async for pieces in answer.pieces():
        times += [time.monotonic()] * len(pieces)
        if times[-1] - times[0] > _RATED_SECONDS:
            answer.cancel()
    return (len(times) - 1) / max(times[-1] - times[0], 1e-9)


async def _written(answer: Answer) -> None:
    async for _ in answer.pieces():
        pass
