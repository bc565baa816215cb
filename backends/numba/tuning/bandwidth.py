"""This file holds how fast this machine reads memory: measured once, remembered, and what decoding is bound by.

A token that is decoded alone reads all weights once, so two speeds tell about how long it takes: that of ternary
products of one row, and that of plain reading, which bounds it and is what keys and values are read at. Where a long
text is in sight, the arithmetic of attention takes longer than reading what it sees, so that its speed is the third.
All are taken on all threads from memory that no cache holds, for a fraction of a second.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.backends.host import largest_cache, num_cores
from nanochat.backends.numba.attention.attention import attention_kernel
from nanochat.backends.numba.products import linear
from nanochat.backends.numba.products.activation import padded_width
from nanochat.backends.numba.products.layouts import layout_of
from nanochat.backends.numba.products.packing import TiledLinear
from nanochat.backends.numba.runtime import costs
from nanochat.backends.numba.runtime.compilation import end_wait, kernel
from nanochat.backends.numba.runtime.isa import Isa, chosen
from nanochat.backends.numba.runtime.lanes import STREAMED
from nanochat.backends.numba.runtime.memory import WeightMemory
from nanochat.backends.numba.runtime.threads import Call, Program, run_program
from nanochat.backends.numba.runtime.vectors import LANES
from nanochat.backends.numba.state import buffers
from nanochat.backends.numba.tuning import choices
from nanochat.backends.numba.tuning.choices import Choice, Shape
from nanochat.backends.numba.tuning.tuner import default_choice, random_matrix
from nanochat.cost import vector_bytes
from nanochat.errors import FormatError, SaveError
from nanochat.files import atomic_write, exists, parse_json, read_bytes
from nanochat.ops import Slot, Storage
from nanochat.rows import PAGE

__all__ = ["BYTES", "Bandwidth", "known", "measure", "path"]

_LOG = logging.getLogger(__name__)

_NAME = "bandwidth"
_LARGEST_FILE = 4096
# Bytes that are read: twice what the caches hold, which on servers may be half a gigabyte.
BYTES = min(max(2**28, 2 * largest_cache()), 2**30)
# Rows of a matrix, columns, and those of its blocks: the usual ones of published models. Each begins in memory that
# nobody has asked for, so that these are read 0.94 times as fast as a matrix of a gigabyte.
_ROWS, _COLUMNS, _BLOCK = 4096, 4096, 128
# Key heads of a layer, their features, queries that share one, and layers.
_HEADS, _FEATURES, _SHARE, _LAYERS = 8, 128, 4, 4
_SPEEDS = "read", "weights", "attention", "int4_attention"
# The bits of 1 in bfloat16.
_ONE = 0x3F80
# Words that are summed at once.
_TASK = 2**15
_RUNS = 15


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """Speeds on so many threads.

    `read` is bytes a second of plain reading, `weights` those of ternary weights in products, with scales and codes in
    two bits, however large models are laid out, and `attention` operations a second of one token that looks at int8
    or wider numbers, or at `int4`.
    """

    isa: Isa
    threads: int
    read: float
    weights: float
    attention: float
    int4_attention: float


def known() -> Bandwidth | None:
    """What was measured on this machine before, with these kernels and as many threads; `None` if nothing was."""
    file = path()
    if file is None or not exists(file):
        return None
    try:
        content = parse_json(read_bytes(file, limit=_LARGEST_FILE), str(file))
    except FormatError as error:
        _LOG.info("%s, so it is measured anew", error)
        return None
    match content:
        case {
            "kernels": kernels,
            "isa": isa,
            "threads": threads,
            "read": float(),
            "weights": float(),
            "attention": float(),
            "int4_attention": float(),
        }:
            here = kernels == choices.kernels() and (isa, threads) == (chosen(), num_cores())
        case _:
            return None
    speeds = {name: float(content[name]) for name in _SPEEDS}  # type: ignore[arg-type]  # matched above
    if not here or not all(math.isfinite(speed) and speed > 0 for speed in speeds.values()):
        return None
    return Bandwidth(isa=chosen(), threads=num_cores(), **speeds)


def measure(size: int = BYTES) -> Bandwidth:
    """Measure with `size` bytes of memory, and remember the fastest that was measured, if a file can be written.

    What other programs do meanwhile makes a measurement slower, never faster.
    """
    isa, threads = chosen(), num_cores()
    rows = max(1, 4 * size // _COLUMNS)
    layout = layout_of("auto", isa, STREAMED)
    shape = Shape("ternary" if layout == "two_bits" else layout, rows, _COLUMNS, _BLOCK)
    matrix = random_matrix(shape, weight_blocks=_COLUMNS // _BLOCK, memory=WeightMemory())
    products = _products(matrix, default_choice(shape, 1, isa))
    words = matrix.codes.reshape(-1)[: matrix.codes.size // 8 * 8].view(np.int64)
    tasks = -(-words.size // _TASK)
    reading = Call(
        _sum_words,
        (words, np.empty(tasks, np.int64)),
        tasks=tasks,
        nanoseconds=words.nbytes * costs.BYTE,
    )
    speeds = {
        "read": words.nbytes / _seconds([reading], threads),
        "weights": (rows * _COLUMNS // 4 + matrix.scales.nbytes) / _seconds(products, threads),
    }
    del matrix, words, products, reading
    speeds["attention"] = _attention("int8", size // 4, threads)
    speeds["int4_attention"] = _attention("int4", size // 8, threads)
    end_wait()
    before = known()
    if before is not None:
        speeds = {name: max(speed, getattr(before, name)) for name, speed in speeds.items()}
    found = Bandwidth(isa=isa, threads=threads, **speeds)
    _keep(found)
    return found


def _products(whole: TiledLinear, choice: Choice) -> list[Call]:
    """Products of one token with matrices that together are this one, one after another."""
    product = linear.integer_product(choice.isa, whole.layout, wide=whole.is_wide)
    blocks = whole.columns // whole.activation_block
    x = np.ones((1, blocks, padded_width(whole.activation_block)), np.int8)
    inputs = x, x.sum(2, dtype=np.int32), np.ones((1, blocks), np.float32)
    tiles = _ROWS // LANES
    calls = []
    for tile in range(0, len(whole.codes), tiles):
        codes, scales = whole.codes[tile : tile + tiles], whole.scales[tile : tile + tiles]
        y = np.empty((1, LANES * len(codes)), np.float32)
        call = Call(
            product,
            (codes, scales, *inputs, y, choice.variant),
            tasks=linear.num_tasks(codes, 1),
            nanoseconds=y.size * whole.columns * costs.INTEGER,
        )
        calls.append(call)
    return calls


def _attention(storage: Storage, size: int, threads: int) -> float:
    """Operations a second of a token that sees keys and values of so many bytes, in all layers."""
    slot = Slot(kind="attention", heads=_HEADS, key_dim=_FEATURES, storage=storage)
    position = 2 * _HEADS * vector_bytes(_FEATURES, storage)
    pages = max(1, size // (_LAYERS * PAGE * position))
    positions = pages * PAGE
    queries = np.ones((1, _SHARE * _HEADS, _FEATURES), np.float32)
    step = np.array([[0], [positions - 1], [1], [0]])
    parts = np.array([[0, 0, head] for head in range(_HEADS)])
    calls = []
    for _ in range(_LAYERS):
        kept = buffers(slot, pages=pages, rows=1)
        for array in kept:
            # Memory of zeros need not be there; and a bfloat16 of the bits 1 is so small that some processors take 100
            # times as long with it.
            array[...] = _ONE if array.dtype == np.uint16 else 1
        call = Call(
            attention_kernel(storage),
            (queries, *kept, np.arange(pages)[None], *step, parts, np.empty_like(queries)),
            tasks=_HEADS,
            nanoseconds=2 * queries.size * positions * costs.FLOAT,
        )
        calls.append(call)
    return 4 * queries.size * positions * _LAYERS / _seconds(calls, threads)


def path() -> Path | None:
    """The file for this processor, or nothing if there is no folder for compiled kernels."""
    return choices.place(_NAME)


def _keep(found: Bandwidth) -> None:
    file = path()
    if file is None:
        return
    try:
        atomic_write(file, json.dumps({"kernels": choices.kernels(), **asdict(found)}).encode())
    except SaveError as error:
        _LOG.debug("%s", error)


def _seconds(calls: Sequence[Call], threads: int) -> float:
    program = Program(calls, threads=threads)
    times = []
    # The first one wakes the threads.
    for _ in range(_RUNS + 1):
        start = time.perf_counter()
        run_program(program)
        times.append(time.perf_counter() - start)
    # The lower quartile: what other programs do to a measurement makes it slower, never faster.
    return sorted(times[1:])[_RUNS // 4]


@kernel
def _sum_words(words: NDArray[np.int64], sums: NDArray[np.int64], first: int, last: int) -> None:
    for task in range(first, last):
        total = 0
        for word in words[task * _TASK : (task + 1) * _TASK]:
            total += word
        sums[task] = total
