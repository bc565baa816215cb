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


def rotation(config: ModelConfig) -> Rotation:
    """The rotation of a configuration's heads.

    In plain Python, which compilers of frameworks can follow. With ``f = theta**(-2 i / K)``, frequencies are by
    `rope_type`:

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
    dims = config.rope_dims or config.head_dim
    theta = ntk_theta(config) if config.rope_type == "ntk" else config.rope_theta
    plain = [theta ** (-pair / (dims // 2)) for pair in range(dims // 2)]
    pairs = enumerate(plain)
    if config.rope_type == "linear":
        plain = [frequency / config.rope_scale for frequency in plain]
    elif config.rope_type == "factors":
        plain = [frequency / config.rope_factors[pair] for pair, frequency in pairs]
    elif config.rope_type in ("llama3", "yarn"):
        plain = [_stretched(config, dims, pair, frequency) for pair, frequency in pairs]
    return Rotation(frequencies=tuple(plain), magnitude=config.rope_magnitude)


def ntk_theta(config: ModelConfig) -> float:
    """Base of the rotation after NTK-aware scaling: ``theta * s**(K / (K - 2))``."""
    dims = config.rope_dims or config.head_dim
    if dims == 2:
        return config.rope_theta
    return config.rope_theta * float(config.rope_scale ** (dims / (dims - 2)))


def _stretched(config: ModelConfig, dims: int, pair: int, frequency: float) -> float:
    by_turns = config.rope_type == "llama3"
    share = _share_by_turns(config, frequency) if by_turns else _share_by_pair(config, dims, pair)
    share = min(max(share, 0.0), 1.0)
    return frequency * share + frequency / config.rope_scale * (1 - share)


def _share_by_turns(config: ModelConfig, frequency: float) -> float:
    """What is left as it is, by how often a pair turns in the original context."""
    turns = config.rope_original_context * frequency / (2 * math.pi)
    return (turns - config.rope_low) / (config.rope_high - config.rope_low)


def _share_by_pair(config: ModelConfig, dims: int, pair: int) -> float:
    """The same by the pair's number, between those that turn so often."""
    first = max(math.floor(_pair(config, dims, config.rope_high)), 0)
    last = min(math.ceil(_pair(config, dims, config.rope_low)), dims - 1)
    # Of equal ends, the paper's authors move one.
    return 1 - (pair - first) / max(last - first, 1e-3)


def _pair(config: ModelConfig, dims: int, turns: float) -> float:
    """The pair, with a fraction, that turns so often in the original context."""
    wavelength = config.rope_original_context / (turns * 2 * math.pi)
    return dims * math.log(wavelength) / (2 * math.log(config.rope_theta))
