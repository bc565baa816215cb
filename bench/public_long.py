"""This file holds what the case `public` measures of long texts: their speed, their memory, and what was expected."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.interleaved import Runner, Timing, interleaved, ratio
from bench.memory import Taken, measure, model_peak, process_peak
from bench.public_models import IDS, SHORT, LongState, Ours, forget_bandwidth
from bench.result import Result
from nanochat.cli.expectation import expect
from nanochat.config import ModelConfig
from nanochat.cost import cost
from nanochat.memory import runtime_bytes
from nanochat.ops import Storage

__all__ = ["LONG", "answer_memory", "expected_memory", "expected_speed", "long_contexts"]

# Tokens in sight, and of an answer.
LONG, _ANSWER = 32_768, 256
# Time over that of reading weights and what is kept of the context.
_OVER_READING = 1.2
# Shares of what was measured.
_EXPECTED = 0.15
_MOST_GIGABYTES = 10.0


def long_contexts(
    name: str,
    path: Path,
    targets: Mapping[Storage, float | None],
    threads: int,
    *,
    length: int = LONG,
    turns: int = 8,
    seconds: float = 0.5,
) -> Iterator[Result]:
    """Decoding after so many tokens beside that after few, for storages of keys and values, each with a target."""
    ours = Ours(path, threads)
    forget_bandwidth()
    config = ours.engine.config
    for storage, target in targets.items():
        ours.keep(storage)
        long = LongState(ours.engine, length)
        runners = {
            "long": Runner(run=long.decode, start=long.start, rest=ours.rest),
            "short": Runner(run=ours.decode, start=lambda: ours.start(IDS[:SHORT]), rest=ours.rest),
            "reading": ours.reader,
        }
        timings = interleaved(runners, turns=turns, seconds=seconds)
        bandwidth = ours.bandwidth(timings["reading"])
        num_bytes = ours.num_bytes + _kept(config, length, storage)
        over_reading = 1 / ours.share(timings["long"], timings["reading"], num_bytes)
        what = f"{name}: a token after {length}, {storage}"
        yield Result(
            case="public",
            what=f"{what}, time over that of reading weights and cache",
            unit="ratio",
            ours=over_reading,
            bound=1.0,
            target=_OVER_READING,
            ok=over_reading <= _OVER_READING,
        )
        short = ours.num_bytes + _kept(config, SHORT, storage)
        over_short = ratio(timings["short"], timings["long"])
        yield Result(
            case="public",
            what=f"{what}, time over that after {SHORT}",
            unit="ratio",
            ours=over_short,
            bound=num_bytes / short,
            target=target,
            ok=target is None or over_short <= target,
        )
        yield expected_speed(name, timings["long"], ours, context=length, bandwidth=bandwidth)
        del long, runners
    ours.close()


def answer_memory(name: str, path: Path, sampling: Mapping[str, object]) -> Result:
    """What a process takes at its height that loads a model and draws an answer, mapped pages of the file included."""
    taken = measure(path, "numba", SHORT + _ANSWER, answer=_ANSWER, sampling=sampling)
    gigabytes = process_peak(taken) / 1e9
    return Result(
        case="public",
        what=f"{name}: memory of a process that draws {_ANSWER} tokens after {SHORT}, at its height",
        unit="GB",
        ours=gigabytes,
        bound=path.stat().st_size / 1e9,
        target=_MOST_GIGABYTES,
        ok=gigabytes <= _MOST_GIGABYTES,
    )


def expected_memory(
    name: str, taken: Mapping[str, Taken], config: ModelConfig, *, context: int
) -> Result:
    """The memory of a model and a text beside what `nanochat models show` tells of it; libraries are not counted.

    It is bound by the weights.
    """
    told = _told(config, context, "float32")["bytes"] - runtime_bytes("numba")
    bound = cost(config, context=context).stored_bytes / 1e9
    what = f"{name}: memory for {context} tokens"
    return _beside_expected(what, "GB", model_peak(taken) / 1e9, told / 1e9, bound)


def expected_speed(
    name: str, timing: Timing, ours: Ours, *, context: int, bandwidth: float
) -> Result:
    """The speed of decoding beside what `nanochat models show` tells of it, which is nothing of models in caches.

    It is bound by reading weights, and what is kept of the context.
    """
    config, storage = ours.engine.config, ours.engine.kv_cache
    told = _told(config, context, storage)["tokens_per_second"]
    bound = bandwidth / (ours.num_bytes + _kept(config, context, storage))
    what = f"{name}: decode after {context}, {storage}"
    return _beside_expected(
        what, "tokens/s", 1 / timing.seconds, float("nan") if told is None else told, bound
    )


def _beside_expected(what: str, unit: str, measured: float, told: float, bound: float) -> Result:
    return Result(
        case="public",
        what=f"{what}, within {_EXPECTED:.0%}",
        unit=unit,
        ours=measured,
        peer=told,
        peer_name="models show",
        ratio=measured / told,
        bound=bound,
        target=1.0,
        ok=abs(told / measured - 1) <= _EXPECTED,
    )


def _told(config: ModelConfig, context: int, storage: Storage) -> dict[str, Any]:
    rows = expect(config, name="the model", backend="numba", contexts=(context,))["memory"]
    assert isinstance(rows, list)
    (told,) = (row for row in rows if row["kv_cache"] == storage)
    return dict(told)


def _kept(config: ModelConfig, context: int, storage: Storage) -> int:
    """Bytes of keys, values and recurrent states that a token reads."""
    costs = cost(config, context=context, kv_cache=storage)
    return costs.read_bytes_per_token - costs.weight_bytes_per_token
