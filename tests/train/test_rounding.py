"""What training multiplies with is what the file will hold, bit for bit."""

import numpy as np
import pytest

from nanochat import ternary
from nanochat.backends.torch import LatentLinear, TorchOps
from nanochat.init import freeze, init
from nanochat.presets import preset
from nanochat.weights import Int8, Ternary, named_leaves

OPS = TorchOps("cpu")
WEIGHTS = init(preset("tiny"), np.random.default_rng(0))


@pytest.mark.parametrize("name", ["layers.0.mixer.q", "layers.3.network.down", "embedding"])
def test_weights_rounded_in_training_equal_those_of_the_file(name: str) -> None:
    latent = dict(named_leaves(OPS.prepare(WEIGHTS)))[name]
    stored = dict(named_leaves(freeze(WEIGHTS)))[name]
    assert isinstance(latent, LatentLinear)
    identity = OPS.array(np.eye(latent.values.shape[1], dtype=np.float32))

    # One at a time, each input is rounded without error.
    in_training = OPS.numpy(OPS.project(identity, latent)[0]).T

    np.testing.assert_array_equal(in_training, dequantized(stored))


def dequantized(leaf: object) -> np.ndarray:
    if isinstance(leaf, Ternary):
        return ternary.dequantize(ternary.unpack(leaf.packed, columns=leaf.columns), leaf.scales)
    assert isinstance(leaf, Int8)
    return leaf.codes.astype(np.float32) * leaf.scales.astype(np.float32)[:, None]


def test_a_block_mean_does_not_depend_on_the_order_of_its_additions() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    reversed_blocks = weight.reshape(64, 16, 256)[:, :, ::-1].reshape(64, 4096)

    _, scales = ternary.quantize(weight, block=256)
    _, of_reversed = ternary.quantize(np.ascontiguousarray(reversed_blocks), block=256)

    np.testing.assert_array_equal(scales, of_reversed)


def test_no_scale_of_many_differs_in_its_last_bit() -> None:
    weight = np.random.default_rng(0).standard_normal((16_384, 1024)).astype(np.float32)
    codes, scales = ternary.quantize(weight, block=256)
    latent = LatentLinear(
        values=OPS.array(weight), kind="ternary", weight_block=256, activation_block=128
    )

    # An embedding's rows are the rounded weights as they are.
    in_training = OPS.numpy(OPS.embed(OPS.tokens(np.arange(16_384)[None]), latent))[0]

    np.testing.assert_array_equal(in_training, ternary.dequantize(codes, scales))
