"""This file holds ``.mhc`` files: the predecessor's sidecars, with the static mHC coefficients of a model.

Its equations for two streams give each site ``alpha = sigmoid(alpha_logit)``, ``Hres = alpha I + (1 - alpha) J`` with
the swap J, ``Hpre = sigmoid(pre_logits + pre_bias)`` and ``Hpost = 2 sigmoid(post_logits + post_bias)``. For four,
``Hres`` is a softmax over the permutations, in our order, and ``Hpost = 4 sigmoid(post_logits + post_bias)``. What is
written gives our coefficients in these equations, and the logits that stand in pairs are in the first of each. What is
done with them is not in the files: here ``x' = Hres x + Hpost y``; its Rust code mixes ``x + Hpost y``.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, VersionError
from nanochat.files import atomic_write, read_bytes
from nanochat.weights import Dense, Mhc, Stored, Weights

__all__ = ["SiteLogits", "read_mhc", "write_mhc"]

# "!CHm" on disk.
_MAGIC = 0x6D484321
_VERSION = 2
_HEADER = struct.Struct("<4I")
_MOST_SITES = 10_000
# Mixing logits of a site in the file; then come two numbers for each stream's read and write.
_MIX_SIZE = {2: 1, 4: 24}
# The predecessor's reader refuses more.
_LARGEST_ALPHA_LOGIT = 20.0


@dataclass(frozen=True, kw_only=True, eq=False)
class SiteLogits:
    """The float32 logits of a static lite site of n streams, (n,), (n,) and (n!,); see `nanochat.weights.Mhc`."""

    read: NDArray[np.float32]
    write: NDArray[np.float32]
    mix: NDArray[np.float32]


def write_mhc(path: Path, config: ModelConfig, weights: Weights[Stored]) -> None:
    """Write the coefficients of a model: of each layer's mixer and network, in the order of the layers."""
    n, looped = config.num_streams, config.num_layers - config.loop_prelude - config.loop_coda
    reasons = {
        f"num_streams={n}: it has places for 2 or 4": n not in _MIX_SIZE,
        f'mixer="{config.mixer}": it has places for mixtures of permutations, "lite"': config.mixer
        != "lite",
        f'coefficients="{config.coefficients}": it has no place for projections': config.coefficients
        != "static",
        f"a loop of {looped} layers: the predecessor's loop has one": config.loop_count > 1
        and looped > 1,
    }
    found = [reason for reason, stands in reasons.items() if stands]
    if found:
        raise ConfigError(
            f"an .mhc file cannot hold this model's coefficients: {'; '.join(found)}. Keep them in the model directory"
        )
    sites = [site for layer in weights.layers for site in (layer.mixer_site, layer.network_site)]
    records = [_record(number, site.mhc) for number, site in enumerate(sites)]
    header = _HEADER.pack(_MAGIC, _VERSION, len(sites), n)
    atomic_write(path, header + np.array(records, "<f4").tobytes())


def read_mhc(path: Path) -> tuple[SiteLogits, ...]:
    """The logits of every site of a file, which give the coefficients that its equations give."""
    data = read_bytes(path, limit=_HEADER.size + _MOST_SITES * _numbers(4) * 4)
    if len(data) < _HEADER.size:
        raise FormatError(f"{path}: {len(data)} bytes, too short for an .mhc file; fetch it again")
    magic, version, count, n = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise FormatError(f"{path}: begins with {data[:4]!r}, not with b'!CHm'; pass an .mhc file")
    if version > _VERSION:
        raise VersionError(
            f"{path}: .mhc version {version}, must be 1 or 2; upgrade nanochat-ternary"
        )
    if version < 1 or n not in _MIX_SIZE or count > _MOST_SITES:
        raise FormatError(
            f"{path}: version {version} with {count} sites of {n} streams: must be version 1 or 2, at most "
            f"{_MOST_SITES} sites, and 2 or 4 streams; fetch it again"
        )
    size = _HEADER.size + count * _numbers(n) * 4
    if len(data) != size:
        raise FormatError(
            f"{path}: {len(data)} bytes, must be {size} for {count} sites of {n} streams; fetch it again"
        )
    records = np.frombuffer(data, "<f4", offset=_HEADER.size).reshape(count, _numbers(n))
    return tuple(_site(f"{path}: site {i}", record, n) for i, record in enumerate(records))


def _numbers(n: int) -> int:
    """Numbers of a site in the file."""
    return _MIX_SIZE[n] + 4 * n


def _record(number: int, mhc: Mhc[Stored] | None) -> NDArray[np.float64]:
    """The numbers of a site in the file."""
    assert mhc is not None
    leaves = [leaf for leaf in (mhc.read, mhc.write, mhc.mix) if isinstance(leaf, Dense)]
    read, write, mix = (leaf.values.astype(np.float64) for leaf in leaves)
    zeros = np.zeros(len(read))
    if len(read) == 2:
        # A softmax over two is the sigmoid of their difference.
        if abs(mix[0] - mix[1]) > _LARGEST_ALPHA_LOGIT:
            raise ConfigError(
                f"site {number} has the mixing logits {mix.tolist()}, whose difference may be at most "
                f"{_LARGEST_ALPHA_LOGIT:.0f} in an .mhc file; keep them in the model directory"
            )
        mix = mix[:1] - mix[1:]
    else:
        # Four times the sigmoid of v is to be twice that of our w.
        write = -np.logaddexp(0, np.log(2) - write)
    return np.concatenate([mix, read, zeros, write, zeros])


def _site(where: str, record: NDArray[np.float32], n: int) -> SiteLogits:
    if not np.isfinite(record).all():
        raise FormatError(f"{where} holds a number that is not finite; fetch it again")
    mix, *pairs = np.split(record.astype(np.float64), _MIX_SIZE[n] + n * np.arange(4))
    read, write = pairs[0] + pairs[1], pairs[2] + pairs[3]
    if n == 2:
        if abs(mix[0]) > _LARGEST_ALPHA_LOGIT:
            raise FormatError(
                f"{where} has the mixing logit {mix[0]}, may be at most {_LARGEST_ALPHA_LOGIT:.0f} either way; fetch "
                "it again"
            )
        mix = np.array([0, -mix[0]])
    elif write.max() >= 0:
        raise FormatError(
            f"{where} has the write logit {write.max():.3g}: from 0 on, the coefficient is 2 or more, which our "
            "equations do not reach; train the model again with this package"
        )
    else:
        # The inverse of what is done in `_record`.
        write = np.log(2) + write - np.log(-np.expm1(write))
    with np.errstate(over="ignore"):
        logits = [x.astype(np.float32) for x in (read, write, mix)]
    if not all(np.isfinite(x).all() for x in logits):
        raise FormatError(
            f"{where} has a logit and a bias whose sum is beyond float32; fetch it again"
        )
    return SiteLogits(read=logits[0], write=logits[1], mix=logits[2])
