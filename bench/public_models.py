"""This file holds the competitors of the case `public`, and the states of long contexts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.bandwidth import Reading
from bench.interleaved import Runner, Timing, ratio
from nanochat.backends.numba.tuning import bandwidth
from nanochat.export.gguf.llama_cpp import LlamaCpp
from nanochat.generation.engine import Engine
from nanochat.lm import Model
from nanochat.ops import Storage
from nanochat.rows import PAGE, num_pages
from nanochat.weights import named_leaves

__all__ = ["IDS", "ROOM", "SHORT", "LongState", "Ours", "Peer", "forget_bandwidth"]

# Tokens of a short text, and those that a state has room for besides.
SHORT, ROOM = 64, 1024
IDS = list(range(300, 812))
_NEXT = 7


class Ours:
    """A model of a file, which reads a prompt or continues a short text."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model = Model.from_pretrained(
            path, backend="numba", kv_cache="float16", num_threads=threads
        )
        self.engine: Engine[Any, Any, Any] = self.model.engine  # type: ignore[assignment]  # of numba
        self._state: object = None
        leaves = dict(named_leaves(self.engine.weights))
        if "head" in leaves:
            del leaves["embedding"]
        # Of the weights that a token reads, as they lie in memory.
        self.num_bytes: int = sum(leaf.nbytes for leaf in leaves.values())
        # All weights, which plain reading reads where they lie: on a shared machine, some memory is 1.7 times as fast
        # as other memory.
        pieces = {id(piece): piece for piece in map(_piece, leaves.values())}
        self._reading = Reading(pieces.values(), threads=threads)
        self.reader = Runner(run=self._reading.run, rest=lambda: None)

    def bandwidth(self, reading: Timing) -> float:
        """Bytes a second of plain reading."""
        return self._reading.num_bytes / reading.seconds

    def share(self, timing: Timing, reading: Timing, num_bytes: int) -> float:
        """Bytes that a call reads a second, of so many, over those of plain reading."""
        return ratio(timing, reading) * num_bytes / self._reading.num_bytes

    def close(self) -> None:
        """Free the model."""
        self._reading.close()
        self.model.close()

    def keep(self, storage: Storage) -> None:
        """Have keys and values of later texts kept otherwise."""
        engine = self.engine
        self.engine = Engine(engine.config, engine.weights, engine.ops, kv_cache=storage)

    def start(self, text: Sequence[int]) -> None:
        """Begin a text."""
        self._state, _ = self.engine.prefill(text, capacity=ROOM)

    def decode(self) -> None:
        """Continue it by a token."""
        self.engine.decode([_NEXT], self._state)

    def prefill(self, text: Sequence[int]) -> None:
        """Read a text."""
        self.engine.prefill(text, capacity=ROOM)

    def rest(self) -> None:
        """Our threads rest by themselves."""


class Peer:
    """The same by llama.cpp."""

    def __init__(self, path: Path, threads: int) -> None:
        self.model = LlamaCpp(path, threads=threads, context=ROOM)

    def start(self, text: Sequence[int]) -> None:
        """Begin a text."""
        self.prefill(text)

    def decode(self) -> None:
        """Continue it by a token."""
        self.model.decode(_NEXT)

    def prefill(self, text: Sequence[int]) -> None:
        """Read a text."""
        self.model.reset()
        self.model.prefill(text)

    def rest(self) -> None:
        """Have its threads sleep."""
        self.model.pause()


def forget_bandwidth() -> None:
    """Have what `nanochat models show` knows of this machine measured anew."""
    record = bandwidth.path()
    if record is not None:
        record.unlink(missing_ok=True)
    bandwidth.measure()


def _piece(leaf: Any) -> NDArray[Any]:
    """The memory in which the largest array of a leaf lies, with those of other leaves."""
    array = leaf if isinstance(leaf, np.ndarray) else getattr(leaf, "codes", None)
    array = leaf.bits if array is None else array
    while isinstance(array.base, np.ndarray):
        array = array.base
    return np.asarray(array)


class LongState:
    """A state that is as if a long text had been read, which would take an hour.

    Every page of positions holds what the first one has, each in memory of its own: keys and values of random weights
    for random tokens, rotated as if they were the first. Recurrent states are those after that page. So a token reads
    and computes as much as after the whole text, with numbers of the same size.
    """

    def __init__(self, engine: Engine[Any, Any, Any], length: int) -> None:
        if length % PAGE:
            raise AssertionError(length)
        self._engine, self._length = engine, length
        ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, PAGE).tolist()
        page, _ = engine.prefill(ids, capacity=PAGE)
        pairs = zip(page.slots, page.arrays, strict=True)
        count = sum(len(arrays) for slot, arrays in pairs if slot.kind == "attention")
        arrays = page.read_row(page.rows[0])
        self._arrays = [
            np.broadcast_to(array, (num_pages(length), *array.shape[1:]))
            for array in arrays[:count]
        ] + arrays[count:]
        self.state = engine.new_state(rows=1, capacity=length + ROOM)

    def start(self) -> None:
        """Forget what was decoded before."""
        for row in self.state.rows:
            self.state.release(row)
        self.state.write_row(self._length, self._arrays)

    def decode(self) -> None:
        """Continue it by a token."""
        self._engine.decode([_NEXT], self.state)
