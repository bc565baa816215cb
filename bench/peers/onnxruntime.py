"""This file holds ONNX Runtime's product with a ternary matrix, as a peer of ours: `MatMulNBits` with 2 bits."""

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.export.onnx.graph import Graph
from nanochat.export.onnx.leaves import BLOCK, Parameter, project
from nanochat.weights import Ternary

__all__ = ["MatMulNBits"]


class MatMulNBits:
    """A model of one node, made as our ONNX export makes it: integer sums, blocks of 128, the contract's numbers.

    After a call, threads beyond the first spin for some 40 ms, as is the default: what runs next is slower that long.

    Parameters
    ----------
    codes : int8 array, shape (R, C), values in {-1, 0, 1}
    scales : float16 array, shape (R, C / 256)
    threads : int
    """

    def __init__(
        self, codes: NDArray[np.int8], scales: NDArray[np.float16], *, threads: int
    ) -> None:
        columns = codes.shape[1]
        leaf = Ternary(
            packed=ternary.pack(codes), scales=scales, columns=columns, activation_block=BLOCK
        )
        graph = Graph()
        x = graph.input("x", ("tokens", columns), dtype=np.float32)
        graph.output(project(graph, x, Parameter(name="weight", leaf=leaf)), "y")
        model = graph.model("product", version="0", metadata={})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        self._rows = len(codes)
        self._x: NDArray[np.float32] | None = None
        self._y = np.empty((0, self._rows), np.float32)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """The product, float32, (N, R).

        It is overwritten when the same array is passed again, which saves 5 us: input and output are bound once.
        """
        if x is not self._x:
            self._bind(x)
        self._session.run_with_iobinding(self._binding)
        return self._y

    def _bind(self, x: NDArray[np.float32]) -> None:
        assert x.dtype == np.float32, x.dtype
        assert x.flags.c_contiguous
        self._x, self._y = x, np.empty((len(x), self._rows), np.float32)
        for bind, name, array in (
            (self._binding.bind_input, "x", self._x),
            (self._binding.bind_output, "y", self._y),
        ):
            bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
