"""This file holds what all operations of the Numba backend share: the launcher, and what must be done at every step."""

from collections.abc import Callable
from typing import Literal, cast

import numpy as np

from nanochat.backends.host import num_cores
from nanochat.backends.numba_kernels.isa import chosen, rivals
from nanochat.backends.numba_kernels.launch import Launcher
from nanochat.backends.numba_kernels.tiles import Leaf
from nanochat.backends.numba_kernels.trits import Layout, possible
from nanochat.backends.numba_kernels.tune import Tuner
from nanochat.backends.numba_ops.pending import Array, Values, now
from nanochat.errors import BackendError

__all__ = ["ELEMENT", "FLOAT", "INTEGER", "KernelOps", "LayoutChoice", "dense_values"]

# How ternary codes shall lie in memory.
LayoutChoice = Literal["auto", "two_bits", "five_trits"]

# Nanoseconds on one thread of a Zen 4 core: a multiply-add of integers and of float32, and an element that is moved
# through a few operations. They decide what is worth several threads, and how finely it is cut.
INTEGER, FLOAT, ELEMENT = 1 / 150, 1 / 20, 0.5

# Bytes of a model's ternary codes, in two bits, that fit no cache of most machines: from there on, five codes to a byte
# are read sooner than two bits: on two Zen 4 cores a token took 0.84 to 0.88 times as long, on one 0.89 to 0.95 times.
# From the cache it took 1.3 times as long.
_STREAMED = 64 * 2**20


class KernelOps:
    """What depends on tokens is computed by kernels alone, so that a step can be repeated without Python.

    An operation that uses NumPy on activations calls `needs_python`.

    Parameters
    ----------
    num_threads : int, optional
        Threads that share a large operation; by default one for each physical core.
    layout : {"auto", "two_bits", "five_trits"}
        How ternary codes lie in memory: in two bits each, or five to a byte, for which activation blocks must have 128
        columns, and rows pairs of them. By default five to a byte where that is possible and the model is so large that
        weights come from memory; other matrices are kept in two bits.

    Raises
    ------
    BackendError
        If five codes to a byte are asked for, and this CPU lacks the instructions; or if Numba may not compile.
    """

    def __init__(
        self,
        *,
        num_threads: int | None = None,
        layout: LayoutChoice = "auto",
    ) -> None:
        self.isa = chosen()
        if layout == "five_trits" and not possible(self.isa):
            raise BackendError(
                f"layout='five_trits' needs AVX-512 VNNI and VBMI, and the instructions in use are {self.isa}: choose "
                "layout='auto' or 'two_bits'"
            )
        self.layout = layout
        self.launch = Launcher(num_cores() if num_threads is None else num_threads)
        self.tuner = Tuner(rivals(), threads=self.launch.threads, cost=INTEGER)

    def layout_of(self, nbytes: int) -> Layout:
        """How a model is laid out whose ternary codes take so many bytes in two bits each."""
        if self.layout == "auto":
            return "five_trits" if nbytes >= _STREAMED and possible(self.isa) else "two_bits"
        return self.layout

    def needs_python(self) -> None:
        """Have the step that is being noted not repeated."""
        if self.launch.notes is not None:
            self.launch.notes.complete = False

    def each_time(self, act: Callable[[], None], *, after: bool = False) -> None:
        """Do something now, and before or after the kernels whenever the step is repeated."""
        act()
        if (notes := self.launch.notes) is not None:
            (notes.after if after else notes.before).append(act)

    def elementwise(self, kernel: Callable[..., None], x: Array, *others: Array) -> Values:
        """Launch ``kernel(x, *others, y)`` on flat arrays of one size."""
        arrays = [now(x), *map(now, others)]
        y = cast(Values, self.launch.empty(arrays[0].shape))
        assert all(array.size == y.size for array in arrays)
        flat = [array.reshape(-1) for array in (*arrays, y)]
        self.launch(kernel, *flat, tasks=y.size, nanoseconds=y.size * ELEMENT)
        return y

    def like(self, x: Values) -> Values:
        """An array of the same shape, not yet set."""
        return cast(Values, self.launch.empty(x.shape))


def dense_values(leaf: Leaf) -> Values:
    """The numbers of a leaf that is not rounded."""
    assert isinstance(leaf, np.ndarray)
    return leaf
