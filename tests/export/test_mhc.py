"""An ``.mhc`` file gives, in its own equations, the coefficients of the model; no file does more than raise."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps, permutation_matrices
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NanochatError, VersionError
from nanochat.export.mhc import read_mhc, write_mhc
from nanochat.init import freeze
from nanochat.weights import Dense, Mhc, Stored, Weights
from tests.parity.random_models import random_weights

BASE: dict[str, Any] = {
    "vocab_size": 270,
    "width": 256,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 256,
}
Sites = list[Mhc[Stored]]


def make(**options: Any) -> tuple[ModelConfig, Weights[Stored]]:
    """A model whose coefficients are all different."""
    config = ModelConfig(**BASE | options)
    return config, freeze(random_weights(config))


def sites(weights: Weights[Stored]) -> Sites:
    pairs = [(layer.mixer_site.mhc, layer.network_site.mhc) for layer in weights.layers]
    return [site for pair in pairs for site in pair if site is not None]


def coefficients(site: Mhc[Stored], n: int) -> list[NDArray[np.float32]]:
    """Hpre, Hpost and Hres as our equations give them."""
    ops = ReferenceOps()
    prepared: Any = Mhc(
        **{
            name: leaf.values if isinstance(leaf, Dense) else None
            for name, leaf in vars(site).items()
        }
    )
    streams = np.eye(n, dtype=np.float32)[None, None]
    read, write, mix = ops.mhc_read(streams, prepared, mixer="lite", iterations=0, eps=1e-6)
    assert mix is not None
    return [read[0, 0], write, mix]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def by_the_predecessor(path: Path) -> list[list[Any]]:
    """Hpre, Hpost and Hres of each site by the equations of the predecessor."""
    data = path.read_bytes()
    magic, version, count, n = struct.unpack_from("<4I", data)
    assert (data[:4], magic, version) == (b"!CHm", 0x6D484321, 2)
    numbers = np.frombuffer(data[16:], "<f4").reshape(count, -1)
    found: list[list[Any]] = []
    for record in numbers:
        if n == 2:
            alpha = sigmoid(record[0])
            mix = np.array([[alpha, 1 - alpha], [1 - alpha, alpha]])
        else:
            theta = np.exp(record[:24].astype(np.float64))
            mix = np.einsum("k,kij->ij", theta / theta.sum(), permutation_matrices(4))
        pre, pre_bias, post, post_bias = record[-4 * n :].reshape(4, n)
        found.append([sigmoid(pre + pre_bias), n * sigmoid(post + post_bias), mix])
    return found


@pytest.mark.parametrize("n", [2, 4])
def test_a_file_gives_our_coefficients_in_the_predecessor_s_equations(
    n: int, tmp_path: Path
) -> None:
    config, weights = make(num_streams=n)

    write_mhc(tmp_path / "x.mhc", config, weights)

    theirs = by_the_predecessor(tmp_path / "x.mhc")
    ours = [coefficients(site, n) for site in sites(weights)]
    assert len(theirs) == len(ours) == 6
    for their_site, our_site in zip(theirs, ours, strict=True):
        for found, expected in zip(their_site, our_site, strict=True):
            np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("n", [2, 4])
def test_coefficients_are_read_as_they_were_written(n: int, tmp_path: Path) -> None:
    config, weights = make(num_streams=n)
    write_mhc(tmp_path / "x.mhc", config, weights)

    again = read_mhc(tmp_path / "x.mhc")

    for found, expected in zip(again, sites(weights), strict=True):
        site = Mhc[Stored](
            read=Dense(values=found.read),
            write=Dense(values=found.write),
            mix=Dense(values=found.mix),
            projection=None,
            gates=None,
        )
        pairs = zip(coefficients(site, n), coefficients(expected, n), strict=True)
        for one, other in pairs:
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)


def test_logits_and_biases_of_the_predecessor_are_added(tmp_path: Path) -> None:
    record = struct.pack("<9f", 0.5, 0.1, -0.2, 0.5, 0.25, 1.0, 2.0, -0.5, 0.5)
    (tmp_path / "x.mhc").write_bytes(struct.pack("<4I", 0x6D484321, 1, 1, 2) + record)

    (site,) = read_mhc(tmp_path / "x.mhc")

    np.testing.assert_allclose(site.read, [0.6, 0.05], rtol=1e-6)
    np.testing.assert_allclose(site.write, [0.5, 2.5], rtol=1e-6)
    assert site.mix.tolist() == [0, -0.5]


def test_a_file_is_as_long_as_the_predecessor_s(tmp_path: Path) -> None:
    for n, layers, size in ((2, 12, 880), (4, 1, 16 + 2 * 160)):
        write_mhc(tmp_path / "x.mhc", *make(num_streams=n, num_layers=layers))

        assert (tmp_path / "x.mhc").stat().st_size == size


def test_the_loop_of_the_predecessor_has_one_layer(tmp_path: Path) -> None:
    config, weights = make(num_streams=2, loop_count=4, loop_prelude=1, loop_coda=1)

    write_mhc(tmp_path / "x.mhc", config, weights)

    assert len(read_mhc(tmp_path / "x.mhc")) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_streams": 1}, "num_streams=1: it has places for 2 or 4"),
        ({"mixer": "sinkhorn"}, 'mixer="sinkhorn"'),
        ({"mixer": "identity"}, 'mixer="identity"'),
        ({"coefficients": "dynamic"}, 'coefficients="dynamic": it has no place for projections'),
        ({"loop_count": 2}, "a loop of 3 layers"),
    ],
)
def test_a_model_without_a_place_is_refused_with_its_reason(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config, weights = make(**options)

    with pytest.raises(ConfigError, match=message):
        write_mhc(tmp_path / "x.mhc", config, weights)

    assert not list(tmp_path.iterdir())


def test_a_mixture_that_the_predecessor_s_reader_refuses_is_not_written(tmp_path: Path) -> None:
    config, weights = make(num_streams=2)
    mix = sites(weights)[3].mix
    assert isinstance(mix, Dense)
    mix.values[:] = [21, 0.5]

    with pytest.raises(ConfigError, match=r"site 3 has the mixing logits .* at most 20"):
        write_mhc(tmp_path / "x.mhc", config, weights)


def header(*fields: int) -> bytes:
    return struct.pack("<4I", *fields)


MAGIC = 0x6D484321
ZEROS = bytes(36)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (b"", FormatError, "too short"),
        (b"GGUF" + bytes(60), FormatError, "begins with b'GGUF'"),
        (header(MAGIC, 3, 0, 2), VersionError, "version 3"),
        (header(MAGIC, 0, 0, 2), FormatError, "version 0"),
        (header(MAGIC, 2, 1, 3) + ZEROS, FormatError, "3 streams"),
        (header(MAGIC, 2, 2**32 - 1, 2) + ZEROS, FormatError, "4294967295 sites"),
        (header(MAGIC, 2, 2, 2) + ZEROS, FormatError, "52 bytes, must be 88"),
        (header(MAGIC, 2, 1, 2) + ZEROS + b"x", FormatError, "53 bytes, must be 52"),
        (header(MAGIC, 2, 1, 2) + ZEROS[4:] + b"\0\0\x80\x7f", FormatError, "not finite"),
        (header(MAGIC, 2, 1, 2) + struct.pack("<f", 21) + ZEROS[4:], FormatError, "logit 21"),
        (header(MAGIC, 2, 1, 2) + struct.pack("<9f", 0, 3e38, 0, 3e38, 0, 0, 0, 0, 0), FormatError,
         "site 0 has a logit and a bias whose sum is beyond float32"),
        (header(MAGIC, 2, 1, 4) + bytes(160), FormatError, "the write logit 0: .* 2 or more"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(
    data: bytes, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.mhc").write_bytes(data)

    with pytest.raises(error, match=message):
        read_mhc(tmp_path / "x.mhc")


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), n=st.sampled_from([2, 4]), count=st.integers(0, 5))
def test_any_bytes_are_refused_or_give_finite_logits(
    data: bytes, n: int, count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.mhc"
    size = count * (36 if n == 2 else 160)
    path.write_bytes(header(MAGIC, 2, count, n) + data[:size].ljust(size, b"\xbf"))

    try:
        found = read_mhc(path)
    except NanochatError:
        return

    assert all(np.isfinite(x).all() for site in found for x in vars(site).values())
