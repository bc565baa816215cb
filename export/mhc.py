"""This file holds ``.mhc`` files: the predecessor's sidecars, with the static mHC coefficients of a model.

Its equations for two streams give each site ``alpha = sigmoid(alpha_logit)``, ``Hres = alpha I + (1 - alpha) J`` with
the swap J, ``Hpre = sigmoid(pre_logits + pre_bias)`` and ``Hpost = 2 sigmoid(post_logits + post_bias)``. For four,
``Hres`` is a softmax over the permutations, in our order, and ``Hpost = 4 sigmoid(post_logits + post_bias)``. What is
written gives our coefficients in these equations, and the logits that stand in pairs are in the first of each.

The files hold coefficients, not what is done with them: here ``x' = Hres x + Hpost y``, as in its README and Python
code. Its Rust code mixes ``x + Hpost y``, which is another model.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, VersionError
from nanochat.files import atomic_write, read_bytes
from nanochat.weights import Dense, Layer, Mhc, Site, Stored, Weights

__all__ = ["SiteLogits", "read_mhc", "with_mhc", "write_mhc"]

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
    """The logits of one site of a static lite model of n streams; see `nanochat.weights.Mhc`.

    Parameters
    ----------
    read, write : float32 array, shape (n,)
    mix : float32 array, shape (n!,)
    """

    read: NDArray[np.float32]
    write: NDArray[np.float32]
    mix: NDArray[np.float32]


def write_mhc(path: Path, config: ModelConfig, weights: Weights[Stored]) -> None:
    """Write the coefficients of a model: of each layer's mixer and network, in the order of the layers.

    Raises
    ------
    ConfigError
        If a file cannot hold them: only static lite sites of two or four streams have a place.
    SaveError
        If the file cannot be written; what stood there is untouched.
    """
    _require_expressible(config)
    n = config.num_streams
    sites = [site for layer in weights.layers for site in (layer.mixer_site, layer.network_site)]
    records = [_record(number, _logits(site)) for number, site in enumerate(sites)]
    header = _HEADER.pack(_MAGIC, _VERSION, len(sites), n)
    atomic_write(path, header + np.array(records, "<f4").tobytes())


def read_mhc(path: Path) -> tuple[SiteLogits, ...]:
    """The logits of every site of a file, which give the coefficients that its equations give.

    Raises
    ------
    FormatError
        If the file is truncated, padded, too new (`VersionError`) or no ``.mhc`` file, or holds a number that is not
        finite or a coefficient that our equations do not reach.
    """
    largest = _MOST_SITES * _numbers(4) * 4
    data = read_bytes(path, limit=_HEADER.size + largest)
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
    if not np.isfinite(records).all():
        site = int(np.argwhere(~np.isfinite(records))[0][0])
        raise FormatError(f"{path}: site {site} holds a number that is not finite; fetch it again")
    return tuple(_site(path, number, record, n) for number, record in enumerate(records))


def with_mhc(
    config: ModelConfig, weights: Weights[Stored], sites: Sequence[SiteLogits]
) -> Weights[Stored]:
    """The weights with other mHC coefficients, such as those of `read_mhc`.

    Raises
    ------
    ConfigError
        If the model has other sites: of another kind, or another number.
    """
    _require_expressible(config)
    streams = {len(site.read) for site in sites}
    if len(sites) != 2 * config.num_layers or streams != {config.num_streams}:
        raise ConfigError(
            f"{len(sites)} sites of {', '.join(map(str, sorted(streams))) or 'no'} streams: a model of "
            f"{config.num_layers} layers and {config.num_streams} streams has {2 * config.num_layers}; pass the file "
            "that belongs to it"
        )
    pairs = zip(sites[::2], sites[1::2], strict=True)
    layers = [
        _with_sites(layer, mixer, network)
        for layer, (mixer, network) in zip(weights.layers, pairs, strict=True)
    ]
    return replace(weights, layers=tuple(layers))


def _require_expressible(config: ModelConfig) -> None:
    looped = config.num_layers - config.loop_prelude - config.loop_coda
    required = [
        (
            config.num_streams in _MIX_SIZE,
            f"num_streams={config.num_streams}: it has places for 2 or 4",
        ),
        (
            config.mixer == "lite",
            f'mixer="{config.mixer}": it has places for mixtures of permutations, "lite"',
        ),
        (
            config.coefficients == "static",
            f'coefficients="{config.coefficients}": it has no place for projections',
        ),
        (
            config.loop_count == 1 or looped == 1,
            f"a loop of {looped} layers: the predecessor's loop has one",
        ),
    ]
    reasons = [reason for holds, reason in required if not holds]
    if reasons:
        raise ConfigError(
            f"an .mhc file cannot hold this model's coefficients: {'; '.join(reasons)}. Keep them in the model "
            "directory"
        )


def _numbers(n: int) -> int:
    """Numbers of a site in the file."""
    return _MIX_SIZE[n] + 4 * n


def _logits(site: Site[Stored]) -> SiteLogits:
    mhc = site.mhc
    assert mhc is not None
    return SiteLogits(read=_values(mhc.read), write=_values(mhc.write), mix=_values(mhc.mix))


def _values(leaf: Stored | None) -> NDArray[np.float32]:
    assert isinstance(leaf, Dense)
    return leaf.values.astype(np.float32)


def _record(number: int, logits: SiteLogits) -> NDArray[np.float64]:
    """The numbers of a site in the file."""
    n = len(logits.read)
    read, write, mix = (x.astype(np.float64) for x in (logits.read, logits.write, logits.mix))
    zeros = np.zeros(n)
    if n == 2:
        # A softmax over two is the sigmoid of their difference.
        mix = mix[:1] - mix[1:]
        if abs(mix[0]) > _LARGEST_ALPHA_LOGIT:
            raise ConfigError(
                f"site {number} has the mixing logits {logits.mix.tolist()}, whose difference may be at most "
                f"{_LARGEST_ALPHA_LOGIT:.0f} in an .mhc file; keep them in the model directory"
            )
    else:
        # Four times the sigmoid of v is to be twice that of our w.
        write = -np.logaddexp(0, np.log(2) - write)
    return np.concatenate([mix, read, zeros, write, zeros])


def _site(path: Path, number: int, record: NDArray[np.float32], n: int) -> SiteLogits:
    mix, *pairs = np.split(record.astype(np.float64), _MIX_SIZE[n] + n * np.arange(4))
    read, write = pairs[0] + pairs[1], pairs[2] + pairs[3]
    if n == 2:
        if abs(mix[0]) > _LARGEST_ALPHA_LOGIT:
            raise FormatError(
                f"{path}: site {number} has the mixing logit {mix[0]}, may be at most "
                f"{_LARGEST_ALPHA_LOGIT:.0f} either way; fetch it again"
            )
        mix = np.array([0, -mix[0]])
    else:
        if write.max() >= 0:
            raise FormatError(
                f"{path}: site {number} has the write logit {write.max():.3g}: from 0 on, the coefficient is 2 or "
                "more, which our equations do not reach; train the model again with this package"
            )
        # The inverse of what is done in `_record`.
        write = np.log(2) + write - np.log(-np.expm1(write))
    with np.errstate(over="ignore"):
        logits = [x.astype(np.float32) for x in (read, write, mix)]
    if not all(np.isfinite(x).all() for x in logits):
        raise FormatError(
            f"{path}: site {number} has a logit and a bias whose sum is beyond float32; fetch it again"
        )
    return SiteLogits(read=logits[0], write=logits[1], mix=logits[2])


def _with_sites(layer: Layer[Stored], mixer: SiteLogits, network: SiteLogits) -> Layer[Stored]:
    return replace(
        layer,
        mixer_site=replace(layer.mixer_site, mhc=_mhc(mixer)),
        network_site=replace(layer.network_site, mhc=_mhc(network)),
    )


def _mhc(logits: SiteLogits) -> Mhc[Stored]:
    return Mhc[Stored](
        read=Dense(values=logits.read),
        write=Dense(values=logits.write),
        mix=Dense(values=logits.mix),
        projection=None,
        gates=None,
    )
