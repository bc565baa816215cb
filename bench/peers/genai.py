"""This file holds an exported folder at work in onnxruntime-genai."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime_genai
from numpy.typing import NDArray

from nanochat.errors import FormatError
from nanochat.proof.parity import Rounding
from nanochat.proof.tolerances import TOLERANCES

__all__ = ["GenaiModel"]


class GenaiModel:
    """A folder at work in onnxruntime-genai: an `Artefact`.

    Parameters
    ----------
    folder : Path
        From `write_genai`.
    """

    runtime = f"onnxruntime-genai {onnxruntime_genai.__version__}"
    tolerance = TOLERANCES["logits"].limit
    rounding: Rounding = "same"

    def __init__(self, folder: Path) -> None:
        try:
            self._model = onnxruntime_genai.Model(str(folder))
        # Its exceptions have no base class of their own.
        except Exception as error:
            raise FormatError(
                f"{folder}: {self.runtime} cannot load it ({error}); export the model again, or pip install -U "
                "onnxruntime-genai"
            ) from error

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """See `Artefact.logits`; it tells only those after the last token, so tokens are given one at a time."""
        generator = self._generator(len(ids) + 1)
        rows = []
        for token in ids:
            generator.append_tokens(np.array([token], np.int32))
            rows.append(generator.get_logits()[0, -1].copy())
        return np.stack(rows)

    def greedy(self, ids: Sequence[int], *, num_tokens: int) -> list[int]:
        """See `Artefact.greedy`; tokens that end a text do not end it."""
        generator = self._generator(len(ids) + num_tokens)
        generator.append_tokens(np.array(ids, np.int32))
        tokens: list[int] = []
        for _ in range(num_tokens):
            tokens.append(int(generator.get_logits()[0, -1].argmax()))
            if len(tokens) < num_tokens:
                generator.append_tokens(np.array(tokens[-1:], np.int32))
        return tokens

    def generate(self, ids: Sequence[int], *, max_length: int) -> list[int]:
        """What it writes by itself after a prompt, to a token that ends it or to `max_length` tokens in all."""
        generator = self._generator(max_length)
        generator.append_tokens(np.array(ids, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)[len(ids) :]]

    def _generator(self, max_length: int) -> onnxruntime_genai.Generator:
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=max_length)
        return onnxruntime_genai.Generator(self._model, parameters)
