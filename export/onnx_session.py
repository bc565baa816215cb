"""This file holds an exported model at work: ONNX Runtime, called with a few tokens at a time."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nanochat.errors import FormatError
from nanochat.export.onnx_state import present_name
from nanochat.files import require_file

__all__ = ["OnnxSession"]


class OnnxSession:
    """An exported file with the sequences that it has seen.

    Parameters
    ----------
    path : Path
        From `nanochat.export.onnx.export_onnx`.
    batch : int
        Sequences that run side by side.

    Raises
    ------
    FormatError
        If ONNX Runtime cannot load the file.
    """

    def __init__(self, path: Path, *, batch: int) -> None:
        require_file(path)
        try:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        # The exceptions of ONNX Runtime have no base class of their own.
        except Exception as error:
            raise FormatError(
                f"{path}: ONNX Runtime {onnxruntime.__version__} cannot load it ({error}); export the model again, or "
                "pip install -U onnxruntime"
            ) from error
        self._mask = np.zeros((batch, 0), np.int64)
        self._past: dict[str, NDArray[np.float32]] = {}
        for entry in self._session.get_inputs():
            if entry.name.startswith("past"):
                free = {"batch": batch, "past": 0}
                shape = [free[dim] if isinstance(dim, str) else dim for dim in entry.shape]
                self._past[entry.name] = np.zeros(shape, np.float32)

    def run(
        self, ids: NDArray[np.int64], *, mask: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Continue the sequences and return the logits after each token, float32, (B, T, vocabulary).

        Parameters
        ----------
        ids : int64 array, shape (B, T)
        mask : int64 array, shape (B, T), optional
            0 for padding, on the left of a sequence's first token; all are tokens by default.
        """
        self._mask = np.concatenate(
            [self._mask, np.ones_like(ids) if mask is None else mask], axis=1
        )
        feed = {"input_ids": ids, "attention_mask": self._mask, **self._past}
        results = self._session.run(["logits", *map(present_name, self._past)], feed)
        self._past = dict(zip(self._past, results[1:], strict=True))
        return np.asarray(results[0], np.float32)
