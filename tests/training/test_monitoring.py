"""What is watched of the residual streams is what the sites do to them."""

from typing import Literal

import numpy as np
import pytest
import torch

from nanochat.backends.torch.ops import TorchOps
from nanochat.init import init
from nanochat.training.module import LanguageModel
from nanochat.training.monitoring import StreamProbe
from tests.training.runs import recipe


@pytest.mark.parametrize("coefficients", ["static", "dynamic"])
@pytest.mark.parametrize("mixer", ["lite", "sinkhorn", "identity"])
def test_the_matrix_of_a_site_is_what_the_site_does_when_the_layer_passes_its_input_on(
    coefficients: str, mixer: Literal["lite", "sinkhorn", "identity"]
) -> None:
    config = recipe(model={"coefficients": coefficients, "mixer": mixer}).model
    ops = TorchOps("cpu", torch.float32)
    model = LanguageModel(config, init(config, np.random.default_rng(0)), ops)
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mhc." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=numbers))
        site = model.tree().layers[0].mixer_site.mhc
        assert site is not None
        streams = torch.randn(1, 1, 4, config.width, generator=numbers)
        probe = StreamProbe(ops)

        u, post, mix = probe.mhc_read(streams, site, mixer=mixer, iterations=20, eps=1e-6)
        out = probe.mhc_write(streams, u, post, mix)

    expected = torch.from_numpy(probe.matrices[0]).float() @ streams
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
