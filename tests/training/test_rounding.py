"""What training multiplies with is what the file will hold, bit for bit."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from nanochat import ternary
from nanochat.backends.torch.linears import FloatLinear, rounded_values
from nanochat.backends.torch.ops import TorchOps
from nanochat.config import Mixer
from nanochat.init import freeze, init
from nanochat.presets import preset
from nanochat.training.module import LanguageModel
from nanochat.weights import Dense, Int8, Ternary, Weights, named_leaves

OPS = TorchOps("cpu")
WEIGHTS = init(preset("tiny"), np.random.default_rng(0))


@pytest.mark.parametrize("name", ["layers.0.mixer.q", "layers.3.network.down", "embedding"])
def test_weights_rounded_in_training_equal_those_of_the_file(name: str) -> None:
    latent = dict(named_leaves(OPS.prepare(WEIGHTS)))[name]
    stored = dict(named_leaves(freeze(WEIGHTS)))[name]
    assert isinstance(latent, FloatLinear)
    identity = OPS.array(np.eye(latent.values.shape[1], dtype=np.float32))

    # One at a time, each input is rounded without error.
    in_training = OPS.numpy(OPS.project(identity, latent)[0]).T

    np.testing.assert_array_equal(in_training, dequantized(stored))


def dequantized(leaf: object) -> np.ndarray:
    if isinstance(leaf, Ternary):
        return ternary.dequantize(ternary.unpack(leaf.packed, columns=leaf.columns), leaf.scales)
    assert isinstance(leaf, Int8)
    return leaf.codes.astype(np.float32) * leaf.scales.astype(np.float32)


def test_a_block_mean_does_not_depend_on_the_order_of_its_additions() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    reversed_blocks = weight.reshape(64, 16, 256)[:, :, ::-1].reshape(64, 4096)

    _, scales = ternary.quantize(weight, block=256)
    _, of_reversed = ternary.quantize(np.ascontiguousarray(reversed_blocks), block=256)

    np.testing.assert_array_equal(scales, of_reversed)


def test_no_scale_of_many_differs_in_its_last_bit() -> None:
    weight = np.random.default_rng(0).standard_normal((16_384, 1024)).astype(np.float32)
    codes, scales = ternary.quantize(weight, block=256)

    in_training = OPS.numpy(rounded_values(OPS.array(weight), "ternary", 256))

    np.testing.assert_array_equal(in_training, ternary.dequantize(codes, scales))


def dynamic_model(mixer: Mixer) -> LanguageModel:
    config = dataclasses.replace(preset("tiny"), coefficients="dynamic", mixer=mixer)
    model = LanguageModel(config, init(config, np.random.default_rng(0)), OPS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("projection"):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def coefficients(tree: Weights[Any], mixer: Mixer) -> list[torch.Tensor]:
    streams = OPS.array(np.random.default_rng(2).standard_normal((2, 3, 4, 256), np.float32))
    site = tree.layers[0].mixer_site.mhc
    assert site is not None
    return [
        array
        for array in OPS.mhc_read(streams, site, mixer=mixer, iterations=20, eps=1e-6)
        if array is not None
    ]


@pytest.mark.parametrize("mixer", ["lite", "sinkhorn", "identity"])
def test_a_projection_in_training_is_that_of_the_file(mixer: Mixer) -> None:
    model = dynamic_model(mixer)
    frozen = freeze(model.stored())

    in_training = coefficients(model.tree(), mixer)
    of_the_file = coefficients(OPS.prepare(frozen), mixer)

    leaf = dict(named_leaves(frozen))["layers.0.mixer_site.mhc.projection"]
    assert isinstance(leaf, Dense)
    assert leaf.values.dtype == np.float16
    for trained, stored in zip(in_training, of_the_file, strict=True):
        np.testing.assert_array_equal(OPS.numpy(trained), OPS.numpy(stored))


@pytest.mark.parametrize("mixer", ["lite", "sinkhorn"])
def test_every_row_of_a_projection_learns(mixer: Mixer) -> None:
    model = dynamic_model(mixer)
    parameter = dict(model.named_parameters())["layers.0.mixer_site.mhc.projection"]

    torch.stack([c.square().sum() for c in coefficients(model.tree(), mixer)]).sum().backward()

    assert parameter.grad is not None
    assert parameter.grad.any(dim=1).all()


def test_every_float16_number_and_the_midpoints_are_rounded_exactly() -> None:
    halves = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    values = np.concatenate(
        [halves, (halves[1:] + halves[:-1]) / 2, halves[1:] * np.float32(0.9999)]
    )

    found = OPS.numpy(rounded_values(OPS.array(values[None]), "float16", 0))[0]

    np.testing.assert_array_equal(found, values.astype(np.float16).astype(np.float32))
