"""This file holds the choice among the ways to compute a product: measured once for each shape, and then remembered.

Which instruction set and which variant of a kernel is the fastest depends on the shape, on the number of tokens, and on
whether the weights come from memory or from the cache. So products are timed as a step of the model calls them, one
matrix after the other. Every way writes the same bits: a choice may be bad, but never wrong.
"""

import dataclasses
import functools
import logging
import os
import threading
import time
import weakref
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.host import is_intel
from nanochat.backends.numba.products import linear
from nanochat.backends.numba.products.activation import padded_width
from nanochat.backends.numba.products.packing import TiledLinear
from nanochat.backends.numba.products.trit_codes import CodeLayout, layout_for
from nanochat.backends.numba.runtime.isa import Isa
from nanochat.backends.numba.runtime.lanes import WORDS
from nanochat.backends.numba.runtime.memory import WeightMemory
from nanochat.backends.numba.runtime.threads import Call, Program, run_program
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.backends.numba.tuning import choices
from nanochat.backends.numba.tuning.choices import CLASSES, Choice, Finding, Key, Shape
from nanochat.errors import InputError

__all__ = ["Matrix", "Tuner", "candidates", "default_choice", "group", "is_on", "random_matrix"]

_LOG = logging.getLogger(__name__)

# A matrix of that shape, or nothing if it has been freed.
Matrix = tuple[Shape, Callable[[], TiledLinear | None]]

# Seconds that the first step of a model may wait, once on a machine.
_PATIENCE = 0.3
# Bytes of weights below which a step is so short that nobody waits for it, and of which a step reads enough to have
# nothing left of them in most caches when it begins anew.
_WORTH, _STREAMED = 8 * 2**20, 64 * 2**20
# Bytes of a matrix that are enough for many tokens, where arithmetic decides.
_PART = 4 * 2**20
# From that many tokens on, weights are read once and used often.
_MANY = 4
# How often each candidate is timed at least and at most, and by what factor it must beat the default: less is noise.
_FEWEST, _MOST, _GAIN = 3, 25, 1.03
# Nanoseconds of work that one thread alone may do faster than several. More is always shared: another program may have
# held a core while products were measured, which would make all of them too slow later.
_LONE = range(8_000, 16_000)


def is_on() -> bool:
    """Whether ``NANOCHAT_TUNE`` lets products be measured, and what was measured be used.

    Raises
    ------
    InputError
        If it is neither on, which is the default, nor off.
    """
    value = os.environ.get("NANOCHAT_TUNE", "") or "on"
    if value not in ("on", "off"):
        raise InputError(
            f"NANOCHAT_TUNE={value!r}: choose on, to measure products once and keep the best way, or off"
        )
    return value == "on"


def default_choice(shape: Shape, tokens: int, isa: Isa) -> Choice:
    """What is taken unless something else has been measured to be better.

    On one Zen 4 core, two and three tokens of ternary weights from memory were 1.4 times faster one by one than
    together. Asking for codes ahead gave between 0.75 and 1.15 times the speed, on the same machine at other hours; for
    8-bit codes it was always slower, and for five codes to a byte always faster, 1.02 to 1.2 times. On a Xeon of
    Intel's all were faster, 1.15 to 2 times.
    """
    together = tokens >= _MANY or (shape.kind == "int8" and tokens > 1)
    pays = is_intel() or shape.kind not in ("int8", "ternary")
    alone = 1 + linear.AHEAD if pays else 1
    return Choice(isa=isa, variant=4 if together else alone, alone=False)


def candidates(
    shape: Shape, tokens: int, isas: Sequence[Isa], *, threads: int, nanoseconds: float
) -> list[Choice]:
    """What is worth measuring, the default first; `nanoseconds` is about what the product takes one thread."""
    variants = [1 + linear.AHEAD, 1] + [4] * (tokens > 1) if tokens < _MANY else [4]
    alone = [False, True] if threads > 1 and int(nanoseconds) in _LONE else [False]
    if (layout := _layout(shape)) != "two_bits":
        isas = [isa for isa in isas if layout_for(isa) == layout]
    first = default_choice(shape, tokens, isas[0])
    found = [Choice(isa=i, variant=v, alone=a) for i in isas for v in variants for a in alone]
    return [first, *(choice for choice in found if choice != first)]


class Tuner:
    """Chooses for the products of one model at a time, among instruction sets of which the first is the default.

    A multiply-add takes about `cost` nanoseconds.
    """

    def __init__(self, isas: Sequence[Isa], *, threads: int, cost: float) -> None:
        self._isas, self._threads, self._cost = tuple(isas), threads, cost
        self._on = is_on()
        self._lock = threading.Lock()
        self._matrices: list[Matrix] = []
        self._known: dict[tuple[Shape, int], Choice] = {}
        self._settled: set[int] = set()

    @property
    def num_known(self) -> int:
        """Products for which the best way was measured, now or at an earlier time."""
        return len(self._known)

    def adopt(self, matrices: Iterable[TiledLinear]) -> None:
        """Choose for these matrices from now on, in the order in which a step uses them; they are not kept alive."""
        self._matrices = [(Shape.of(matrix), weakref.ref(matrix)) for matrix in matrices]
        self._known, self._settled = {}, set()

    def replace(self, old: TiledLinear, new: TiledLinear) -> None:
        """Choose for `new`, of the same shape, in the place of `old`; what is known of the shape stays."""
        self._matrices = [
            (shape, weakref.ref(new) if get() is old else get) for shape, get in self._matrices
        ]

    def choice(self, matrix: TiledLinear, tokens: int) -> Choice:
        """How to compute the product; of a large model, the first one with so many tokens measures all."""
        shape, number = Shape.of(matrix), group(tokens)
        if number not in self._settled and self._on and self._lock.acquire(blocking=False):
            # Another thread does not wait, and takes the defaults.
            try:
                self._settle(number)
                self._settled.add(number)
            finally:
                self._lock.release()
        return self._known.get((shape, number)) or default_choice(shape, number, self._isas[0])

    def measure(
        self, matrices: Sequence[Matrix], *, tokens: int, seconds: float
    ) -> dict[Key, Finding]:
        """Measure all shapes of a model for one of `choices.CLASSES`, keep what is found on disk, and return it.

        The matrices are in the order in which a step uses them. After so many seconds no candidate is timed again that
        has been a few times.
        """
        start = time.perf_counter()
        keys = _keys([shape for shape, _ in matrices], tokens, self._isas, self._threads)
        products = [
            _Product(shape, matrix, tokens, self._ways(shape, tokens), self._threads, self._cost)
            for shape, get in _sample(matrices, tokens)
            if (matrix := get()) is not None
        ]
        if not products:
            return {}
        times = _times(products, start + seconds)
        found = {keys[shape]: _finding(times[shape]) for shape in keys if shape in times}
        path = choices.keep(found)
        _LOG.info(
            "measured products of %d shapes for %d tokens at once in %.1f s, %s",
            len(found),
            tokens,
            time.perf_counter() - start,
            f"once: kept in {path}" if path else "and at every start: no file can be written",
        )
        return found

    def _settle(self, tokens: int) -> None:
        shapes = [shape for shape, _ in self._matrices]
        if sum(shape.nbytes for shape in shapes) < _WORTH or not self._has_choice(shapes, tokens):
            return
        keys = _keys(shapes, tokens, self._isas, self._threads)
        kept = choices.load()
        if any(key not in kept for key in keys.values()):
            kept |= self.measure(self._matrices, tokens=tokens, seconds=_PATIENCE)
        for shape, key in keys.items():
            if key in kept:
                self._known[shape, tokens] = kept[key].choice

    def _has_choice(self, shapes: Sequence[Shape], tokens: int) -> bool:
        return any(len(self._ways(shape, tokens)) > 1 for shape in shapes)

    def _ways(self, shape: Shape, tokens: int) -> list[Choice]:
        nanoseconds = tokens * shape.rows * shape.columns * self._cost
        return candidates(shape, tokens, self._isas, threads=self._threads, nanoseconds=nanoseconds)


def random_matrix(shape: Shape, *, weight_blocks: int, memory: WeightMemory) -> TiledLinear:
    """A matrix of legal codes that nobody has trained."""
    tiles, blocks = -(-shape.rows // LANES), shape.columns // shape.block
    if _layout(shape) != "two_bits":
        # Any byte stands for five codes.
        size = (tiles, blocks // 2, WORDS, LANES, 4)
    else:
        width = padded_width(shape.block) // (16 if shape.kind == "ternary" else 4)
        size = (tiles, blocks, width, LANES, 4)
    codes = memory.empty(size, np.uint8)
    flat, pattern = codes.reshape(-1), _pattern()
    for start in range(0, flat.size, pattern.size):
        part = flat[start : start + pattern.size]
        part[:] = pattern[: part.size]
    return TiledLinear(
        codes=codes,
        scales=np.full((tiles, weight_blocks, LANES), np.float16(1).view(np.uint16)),
        rows=shape.rows,
        columns=shape.columns,
        activation_block=shape.block,
        layout=_layout(shape),
    )


def _layout(shape: Shape) -> CodeLayout:
    return "two_bits" if shape.kind == "ternary" or shape.kind == "int8" else shape.kind


@functools.cache
def _pattern() -> NDArray[np.uint8]:
    pairs = np.random.default_rng(0).integers(0, 3, (4, 2**18), np.uint8)
    return np.asarray(pairs[0] | pairs[1] << 2 | pairs[2] << 4 | pairs[3] << 6, np.uint8)


class _Product:
    """One matrix, and every way to multiply it."""

    def __init__(
        self,
        shape: Shape,
        matrix: TiledLinear,
        tokens: int,
        ways: Sequence[Choice],
        threads: int,
        cost: float,
    ) -> None:
        if tokens >= _MANY:
            matrix = _part(matrix)
        self.shape, self.ways = shape, ways
        self.operations = 2 * tokens * matrix.rows * matrix.columns
        nanoseconds = self.operations / 2 * cost
        blocks = matrix.columns // matrix.activation_block
        x = np.ones((tokens, blocks, padded_width(matrix.activation_block)), np.int8)
        scales = np.ones((tokens, blocks), np.float32)
        y = np.empty((tokens, matrix.rows), np.float32)
        arrays = matrix.codes, matrix.scales, x, x.sum(2, dtype=np.int32), scales, y
        tasks = linear.num_tasks(matrix.codes, tokens)
        calls = [
            Call(
                linear.integer_product(way.isa, matrix.layout, wide=matrix.is_wide),
                (*arrays, way.variant),
                tasks=tasks,
                nanoseconds=0.0 if way.alone else nanoseconds,
            )
            for way in self.ways
        ]
        self.programs = [Program([call], threads=threads) for call in calls]


# By shape and candidate: billions of operations a second.
_Times = dict[Shape, dict[Choice, list[float]]]


def _times(products: Sequence[_Product], deadline: float) -> _Times:
    times: _Times = defaultdict(lambda: defaultdict(list))
    most = max(len(product.ways) for product in products)
    # The first round wakes the threads.
    for round_ in range(-1, _MOST):
        for turn in range(most):
            for product in products:
                # Another order in every round, for each leaves something else in the cache.
                number = (turn + round_) % len(product.ways)
                start = time.perf_counter_ns()
                run_program(product.programs[number])
                elapsed = time.perf_counter_ns() - start
                if round_ >= 0:
                    speed = product.operations / max(1, elapsed)
                    times[product.shape][product.ways[number]].append(speed)
        if round_ + 1 >= _FEWEST and time.perf_counter() > deadline:
            break
    return times


def _finding(times: dict[Choice, list[float]]) -> Finding:
    # The upper quartile: what other programs do to a measurement makes it slower, never faster.
    speeds = {choice: sorted(numbers)[3 * len(numbers) // 4] for choice, numbers in times.items()}
    default, *_ = speeds
    order = sorted(speeds, key=lambda choice: -speeds[choice])
    best = order[0] if speeds[order[0]] > _GAIN * speeds[default] else default
    others = [choice for choice in order if choice != best]
    return Finding(
        choice=best,
        gops=speeds[best],
        next_best=others[0] if others else None,
        next_gops=speeds[others[0]] if others else 0.0,
    )


def _sample(matrices: Sequence[Matrix], tokens: int) -> Iterator[Matrix]:
    """One of each shape and, if weights come from memory, as many as fill a cache."""
    room = _STREAMED if tokens < _MANY else 0
    seen: set[Shape] = set()
    for shape, get in matrices:
        if shape not in seen or room > 0:
            seen.add(shape)
            room -= shape.nbytes
            yield shape, get


def _part(matrix: TiledLinear) -> TiledLinear:
    tiles = max(1, min(len(matrix.codes), _PART * len(matrix.codes) // matrix.codes.nbytes))
    return dataclasses.replace(
        matrix,
        codes=matrix.codes[:tiles],
        scales=matrix.scales[:tiles],
        rows=min(matrix.rows, tiles * LANES),
    )


def group(tokens: int) -> int:
    """The largest of `choices.CLASSES` that is not larger, or 1."""
    return CLASSES[max(0, bisect_right(CLASSES, tokens) - 1)]


def _keys(
    shapes: Sequence[Shape], tokens: int, isas: Sequence[Isa], threads: int
) -> dict[Shape, Key]:
    total = sum(shape.nbytes for shape in shapes)
    return {
        shape: Key(
            shape=shape,
            tokens=tokens,
            isas=tuple(isas),
            threads=threads,
            size=max(1, total - 1).bit_length(),
        )
        for shape in shapes
    }
