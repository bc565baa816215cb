"""This file holds the program that `bench.start` runs in fresh interpreters: one start, and where its time goes.

``python -m bench.start_probe SECONDS`` loads the shipped model and prints one JSON object when it has twenty tokens.
SECONDS is what `time.monotonic`, which all processes share, said before the interpreter was started.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from typing import Any

__all__ = ["PROMPT", "Stage", "main"]

PROMPT = "fn main() {"
_TOKENS = 20


class Stage(StrEnum):
    """What a start does, in about this order."""

    PYTHON = "interpreter, import nanochat"
    NUMBA = "import Numba, with NumPy"
    BACKEND = "import the backend"
    REST = "import the rest"
    FILES = "read files"
    PREPARE = "prepare weights"
    THREADS = "start threads"
    FUNCTIONS = "Numba's own functions"
    COMPILE = "compile kernels"
    LOAD = "load kernels"
    COMPUTE = "compute, and the rest"


class _Stopwatch:
    """Counts every moment of this thread for one stage: the last that was entered and not left."""

    def __init__(self, start: float) -> None:
        self.seconds = dict.fromkeys(Stage, 0.0)
        self._thread = threading.get_ident()
        self._stages = [Stage.PYTHON]
        self._last = start

    def enter(self, stage: Stage) -> None:
        if threading.get_ident() == self._thread:
            self._count()
            # What compiling loads and locks is part of it.
            inside = self._stages[-1] is Stage.COMPILE
            self._stages.append(Stage.COMPILE if inside else stage)

    def leave(self) -> None:
        if threading.get_ident() == self._thread:
            self._count()
            self._stages.pop()

    def next(self, stage: Stage) -> None:
        self._count()
        self._stages = [stage]

    def during(self, stage: Stage, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time counted for a stage."""

        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            self.enter(stage)
            try:
                return function(*arguments, **named)
            finally:
                self.leave()

        return timed

    def _count(self) -> None:
        now = time.monotonic()
        self.seconds[self._stages[-1]] += now - self._last
        self._last = now


def main(start: float) -> None:
    """Start once and print seconds: of ``stages`` to the first token, and of ``kernels`` that were compiled."""
    # Imported one by one and late, since their time is what is measured.
    import nanochat

    watch = _Stopwatch(start)
    watch.next(Stage.NUMBA)
    import numba.core.event
    import numba.np.ufunc.parallel
    from numba.core.base import BaseContext

    watch.next(Stage.BACKEND)
    from nanochat.backends.numba.ops import NumbaOps

    watch.next(Stage.REST)
    import nanochat.lm
    import nanochat.zoo.hub
    from nanochat.export.formats import FORMATS

    class During(numba.core.event.Listener):
        def __init__(self, stage: Stage) -> None:
            self.stage = stage

        def on_start(self, _: object) -> None:
            watch.enter(self.stage)

        def on_end(self, _: object) -> None:
            watch.leave()

    class Kernels(numba.core.event.Listener):
        def __init__(self) -> None:
            self.seconds: dict[str, float] = {}
            self.starts: list[float] = []

        def on_start(self, _: object) -> None:
            self.starts.append(time.monotonic())

        def on_end(self, event: numba.core.event.Event) -> None:
            began = self.starts.pop()
            if not self.starts:
                function = event.data["dispatcher"].py_func
                name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    kernels = Kernels()
    numba.core.event.register("numba:compiler_lock", During(Stage.LOAD))  # type: ignore[no-untyped-call]
    numba.core.event.register("numba:compile", During(Stage.COMPILE))  # type: ignore[no-untyped-call]
    numba.core.event.register("numba:compile", kernels)  # type: ignore[no-untyped-call]
    for owner, name, stage in (
        (nanochat.lm, "detect", Stage.FILES),
        (type(FORMATS["nanochat"]), "read", Stage.FILES),
        (NumbaOps, "prepare", Stage.PREPARE),
        (BaseContext, "refresh", Stage.FUNCTIONS),
        (threading.Thread, "start", Stage.THREADS),
        (numba.np.ufunc.parallel, "_launch_threads", Stage.THREADS),
    ):
        setattr(owner, name, watch.during(stage, getattr(owner, name)))

    watch.next(Stage.COMPUTE)
    model = nanochat.from_pretrained("nanochat-tiny", backend="numba")
    tokens = model.pieces([model.encode_prompt(PROMPT)], max_tokens=_TOKENS)
    next(tokens)
    watch.next(Stage.COMPUTE)
    stages = {stage.value: seconds for stage, seconds in watch.seconds.items()}
    began = time.monotonic()
    # Greedy, and none of them ends the text.
    assert len([*tokens]) == _TOKENS - 1
    stages[f"then, to token {_TOKENS}"] = time.monotonic() - began
    print(json.dumps({"stages": stages, "kernels": kernels.seconds}))


if __name__ == "__main__":
    main(float(sys.argv[1]))
