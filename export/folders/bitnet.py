"""This file holds the reader of BitNet checkpoints for Hugging Face transformers: ternary linears with one scale each.

Such a folder has the configuration of a transformer whose linears transformers replaces, as ``quantization_config``
says, by one of two classes:

* *bitlinear*: packed codes, and the inverse of the scale that we keep;
* *autobitlinear*: the scale itself, beside codes that are packed or written as numbers; or, with the mode *online*, no
  scale but weights that are rounded whenever they are used.

Both round a linear's input to 8 bits, with one scale per token.

References
----------
.. [1] github.com/huggingface/transformers, src/transformers/integrations/bitnet.py, version 5.23.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NumericError, ShapeError
from nanochat.export.folders.configuration import read_configuration
from nanochat.export.folders.quantization import StoredScale, read_quantization
from nanochat.export.stock.folder import module_name
from nanochat.shapes import shapes
from nanochat.tensors import Tensor, load_tensors
from nanochat.weights import Dense, Spec, Stored, Ternary, Weights, map_leaves, named_leaves

__all__ = ["load_bitnet", "read_bitnet_config"]

_LOGGER = logging.getLogger(__name__)

_FLOATS = ("F32", "F16", "BF16")
# Four codes of 0.
_ZEROS = 0x55
# What transformers takes for the mean magnitude of a matrix of zeros.
_SMALLEST_MEAN = 1e-5
# What a mean in float32 is off by.
_FLOAT32_ERROR = 1e-6


def load_bitnet(
    directory: Path, fields: Mapping[str, object]
) -> tuple[ModelConfig, Weights[Stored]]:
    """The configuration and weights of a folder, as ours; `fields` is the content of its ``config.json``."""
    config = read_bitnet_config(directory, fields)
    with _of_the_configuration(directory):
        scale = read_quantization(fields.get("quantization_config"))
    return config, _Reader(directory, load_tensors(directory), scale).weights(config)


def read_bitnet_config(directory: Path, fields: Mapping[str, object]) -> ModelConfig:
    """The configuration of a folder, as ours; see `load_bitnet`."""
    with _of_the_configuration(directory):
        return ModelConfig(
            **read_configuration(fields),
            table_format="dense",
            weight_block="row",
            activation_block="token",
        )


@contextmanager
def _of_the_configuration(directory: Path) -> Iterator[None]:
    """Say which file an error is in."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{directory / 'config.json'}: {error}") from error


class _Reader:
    """Makes our leaves of a checkpoint's tensors, and keeps count of those it has used."""

    def __init__(self, directory: Path, tensors: Mapping[str, Tensor], stored: StoredScale) -> None:
        self._directory = directory
        self._tensors = tensors
        self._stored = stored
        self._used: set[str] = set()
        # The largest relative error of a scale's rounding to float16, and whose.
        self._rounding: tuple[float, str] = (0.0, "")

    def weights(self, config: ModelConfig) -> Weights[Stored]:
        """The whole model."""
        specs = shapes(config)
        names = {name: module_name(name) for name, _ in named_leaves(specs)}
        missing = [key for key in names.values() if f"{key}.weight" not in self._tensors]
        if missing:
            raise FormatError(
                f"{self._directory}: {len(missing)} weights are missing, the first is {missing[0]}.weight: "
                "config.json is another model's, or a download is incomplete; fetch the model again"
            )
        weights = map_leaves(lambda name, spec: self._leaf(names[name], spec), specs)
        self._refuse_others(config)
        error, name = self._rounding
        if error > _FLOAT32_ERROR:
            _LOGGER.warning(
                "%s: scales are rounded to float16; the largest relative error is %.1e, of %s",
                self._directory,
                error,
                name,
            )
        return weights

    def _leaf(self, name: str, spec: Spec) -> Stored:
        if spec.kind == "dense":
            return Dense(values=self._floats(f"{name}.weight", spec.shape))
        packed, scale = self._matrix(name, spec.shape)
        # Zeros have no magnitude, and any scale.
        scale = ternary.SMALLEST_SCALE if (packed == _ZEROS).all() else scale
        return Ternary(
            packed=packed,
            scales=np.full((len(packed), 1), self._half(name, scale), np.float16),
            columns=spec.shape[1],
            activation_block=spec.activation_block,
        )

    def _matrix(self, name: str, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], float]:
        """Packed codes and scale of a linear."""
        key = f"{name}.weight"
        if self._stored == "none":
            return _round(self._floats(key, shape))
        if self._stored == "inverse" or self._tensors[key].dtype == "U8":
            packed, magnitude = self._repack(key, shape), 1.0
        else:
            packed, magnitude = _recover(key, self._floats(key, shape))
        scale = self._scale(f"{name}.weight_scale")
        return packed, 1.0 / scale if self._stored == "inverse" else magnitude * scale

    def _repack(self, key: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Four columns to a byte from four rows: bits 2 i and 2 i + 1 of theirs, row r, are row r + i R / 4, plus 1."""
        rows, columns = shape
        if rows % 4:
            raise ShapeError(
                f"{key} has {rows} rows by config.json: packed matrices have a multiple of 4; fetch the model again"
            )
        theirs = np.asarray(self._take(key, (rows // 4, columns), "U8").array(), np.uint8)
        ternary.require_legal(theirs, key)
        words = np.ascontiguousarray(theirs).view("<u4")
        ours = np.empty((4, rows // 4, columns // 4), np.uint8)
        for i in range(4):
            # Each byte's pair i, moved down to one byte: the first column's lowest.
            pairs = words >> np.uint32(2 * i) & np.uint32(0x03030303)
            pairs |= pairs >> np.uint32(6)
            ours[i] = pairs & np.uint32(0x0F) | (pairs >> np.uint32(12) & np.uint32(0xF0))
        return ours.reshape(rows, -1)

    def _scale(self, key: str) -> float:
        if key not in self._tensors:
            raise FormatError(
                f"{self._directory}: {key} is missing, without which its linear has no magnitude; fetch the model again"
            )
        # Some writers leave the only dimension out.
        shape = () if self._tensors[key].shape == () else (1,)
        scale = float(self._floats(key, shape).sum())
        if scale <= 0:
            raise NumericError(f"{key} is {scale:g}: scales are positive; fetch the model again")
        return scale

    def _half(self, name: str, scale: float) -> np.float16:
        """A scale as the float16 that we keep; the largest error is remembered."""
        largest = float(np.finfo(np.float16).max)
        if not ternary.SMALLEST_SCALE <= scale <= largest:
            raise NumericError(
                f"{name} has the scale {scale:g}: scales are float16, from {ternary.SMALLEST_SCALE:g} to {largest:g}; "
                "rescale the matrix, or fetch the model again"
            )
        half = np.float16(scale)
        self._rounding = max(self._rounding, (abs(float(half) - scale) / scale, name))
        return half

    def _floats(self, key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        values = self._take(key, shape, *_FLOATS).array().astype(np.float32, copy=False)
        ternary.require_finite(values, key)
        return values

    def _take(self, key: str, shape: tuple[int, ...], *dtypes: str) -> Tensor:
        tensor = self._tensors[key]
        if tensor.dtype not in dtypes:
            raise FormatError(
                f"{tensor.path}: {key} is of type {tensor.dtype}, must be {' or '.join(dtypes)} as config.json "
                "describes the linears; convert it, or fetch the model again"
            )
        if tensor.shape != shape:
            raise ShapeError(
                f"{tensor.path}: {key} has shape {list(tensor.shape)} but config.json asks for {list(shape)}: one of "
                "the two files is another model's; fetch both again"
            )
        self._used.add(key)
        return tensor

    def _refuse_others(self, config: ModelConfig) -> None:
        """Refuse tensors that have no place: left out, the model would compute something else."""
        # Older versions of transformers wrote what follows from the configuration.
        others = {
            key
            for key in self._tensors.keys() - self._used
            if not key.endswith("rotary_emb.inv_freq")
        }
        if config.tie_embeddings and "lm_head.weight" in others:
            head = self._tensors["lm_head.weight"]
            table = self._tensors["model.embed_tokens.weight"]
            if head.dtype == table.dtype and np.array_equal(head.data, table.data):
                others.remove("lm_head.weight")
        if others:
            key = min(others)
            raise FormatError(
                f"{self._tensors[key].path}: {len(others)} tensors have no place in this model, the first is "
                f"{key!r:.80}: linears here have no biases and no norms inside, and a tied head is the embedding; "
                "pass a model without it"
            )


def _round(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """Packed codes and scale as the mode *online* rounds: one mean magnitude for the whole matrix, half to even."""
    mean = np.float32(max(np.abs(weight).mean(dtype=np.float64), _SMALLEST_MEAN))
    codes = np.rint(weight * (np.float32(1) / mean))
    np.clip(codes, -1, 1, out=codes)
    return ternary.pack(codes.astype(np.int8)), float(mean)


def _recover(key: str, weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], float]:
    """Packed codes and magnitude of a matrix whose numbers are ternary already."""
    magnitude = np.abs(weight).max()
    codes = np.sign(weight)
    if not np.array_equal(codes * magnitude, weight):
        raise NumericError(
            f"{key} holds several magnitudes, which the mode offline does not round: it must be ternary; if these are "
            'the weights that training rounds, write "quantization_mode": "online" into config.json'
        )
    return ternary.pack(codes.astype(np.int8)), float(magnitude)
