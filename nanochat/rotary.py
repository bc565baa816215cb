"""This file holds the rotary embeddings of a configuration: angles for each position, and one magnitude.

Whatever a model was stretched with for longer texts, what is computed is the same: pair i of a head's features turns by
``frequencies[i]`` radians a position, and comes out `magnitude` times as long.

Legend: K features of a head that are rotated, i a pair of them from 0 to K / 2 - 1, s `rope_scale`, L
`rope_original_context`.

References
----------
.. [1] J. Su et al., "RoFormer", 2021. arXiv:2104.09864
.. [2] B. Peng et al., "YaRN", 2023, sections 3.2 to 3.4. arXiv:2309.00071
.. [3] github.com/huggingface/transformers, src/transformers/modeling_rope_utils.py, version 5.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig

__all__ = ["Rotation", "ntk_theta", "rotation"]


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """How heads are rotated: radians a position of each pair, K / 2 of them, and what they are multiplied with.

    Features of a head from K on are not rotated, nor multiplied.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0

    @property
    def dims(self) -> int:
        """K, the features of a head that are rotated."""
        return 2 * len(self.frequencies)

    def tables(
        self, positions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosine and sine times the magnitude, (..., K / 2), of positions (...).

        Angles are float32 products of a position and a frequency, which was computed in float64 and is rounded once.
        """
        angles = positions[..., None] * np.array(self.frequencies, np.float32)
        magnitude = np.float32(self.magnitude)
        return np.cos(angles) * magnitude, np.sin(angles) * magnitude


@lru_cache
def rotation(config: ModelConfig) -> Rotation:
    """The rotation of a configuration's heads.

    With ``f = theta**(-2 i / K)``, the frequencies are by `rope_scaling`:

    * *ntk*: those of another theta, ``theta * s**(K / (K - 2))``;
    * *linear*: ``f / s``;
    * *llama3*: ``f / s`` where a pair turns less than `rope_low` times in L tokens, f where more than `rope_high`
      times, and between them the mean of both, weighted by the number of turns;
    * *yarn*: the same, but weighted by i between the pairs that turn so often, rounded outwards;
    * *factors*: ``f / rope_factors[i]``.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> [round(frequency, 4) for frequency in rotation(preset("tiny")).frequencies[:3]]
    [1.0, 0.7499, 0.5623]
    """
    dims, theta = config.rope_dims or config.head_dim, config.rope_theta
    pairs = np.arange(dims // 2)
    plain = theta ** (-pairs / (dims // 2))
    match config.rope_scaling:
        case "ntk":
            frequencies = ntk_theta(config) ** (-pairs / (dims // 2))
        case "linear":
            frequencies = plain / config.rope_scale
        case "factors":
            frequencies = plain / np.array(config.rope_factors)
        case "llama3":
            turns = config.rope_original_context * plain / (2 * math.pi)
            share = (turns - config.rope_low) / (config.rope_high - config.rope_low)
            frequencies = _blend(plain, config.rope_scale, share)
        case "yarn":
            first, last = (
                _pair(config, dims, turns) for turns in (config.rope_high, config.rope_low)
            )
            first, last = max(math.floor(first), 0), min(math.ceil(last), dims - 1)
            # Of equal ends, the paper's authors move one.
            share = 1 - (pairs - first) / max(last - first, 1e-3)
            frequencies = _blend(plain, config.rope_scale, share)
    return Rotation(frequencies=tuple(frequencies.tolist()), magnitude=config.rope_magnitude)


def ntk_theta(config: ModelConfig) -> float:
    """Base of the rotation after NTK-aware scaling: ``theta * s**(K / (K - 2))``."""
    dims = config.rope_dims or config.head_dim
    if dims == 2:
        return config.rope_theta
    return config.rope_theta * float(config.rope_scale ** (dims / (dims - 2)))


def _blend(
    plain: NDArray[np.float64], factor: float, share: NDArray[np.float64]
) -> NDArray[np.float64]:
    share = np.clip(share, 0, 1)
    return plain * share + plain / factor * (1 - share)


def _pair(config: ModelConfig, dims: int, turns: float) -> float:
    """The pair, with a fraction, that turns so often in the original context."""
    wavelength = config.rope_original_context / (turns * 2 * math.pi)
    return dims * math.log(wavelength) / (2 * math.log(config.rope_theta))
