"""What is watched of the residual streams is what the sites do to them."""

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nanochat import ternary
from nanochat.backends.torch.ops import TorchOps
from nanochat.init import freeze, init
from nanochat.shapes import shapes
from nanochat.training.loop import Trainer
from nanochat.training.module import LanguageModel
from nanochat.training.monitoring import StreamProbe, gradient_norms
from nanochat.training.run_log import LogEntry
from nanochat.weights import Ternary, named_leaves
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


def test_a_gradient_counts_in_all_and_in_its_role() -> None:
    specs = dict(named_leaves(shapes(recipe().model)))
    gradients = {name: torch.full(spec.shape, 0.5) for name, spec in specs.items()}
    sizes = {name: gradient.numel() for name, gradient in gradients.items()}

    found = {kind: float(norm) for kind, norm in gradient_norms(gradients, specs).items()}

    matrices = sum(size for name, size in sizes.items() if specs[name].kind == "ternary")
    mixing = sum(size for name, size in sizes.items() if name.endswith("mhc.mix"))
    assert found["gradient_norm"] == pytest.approx(0.5 * sum(sizes.values()) ** 0.5)
    assert found["gradient_norm_matrices"] == pytest.approx(0.5 * matrices**0.5)
    assert found["gradient_norm_mix"] == pytest.approx(0.5 * mixing**0.5)
    assert found["gradient_norm_embedding"] == pytest.approx(0.5 * sizes["embedding"] ** 0.5)


def test_codes_are_those_of_the_file_and_flips_those_of_an_update(
    data: Path, tmp_path: Path
) -> None:
    settings = recipe(steps=20)
    trainer = Trainer(settings, data, tmp_path, num_threads=1, compile_model=False)
    seen: list[list[NDArray[np.int8]]] = []

    def look(entry: LogEntry) -> None:
        seen.append(_codes(trainer))
        if "code_flips" in entry.values:
            assert entry.step in (10, 20)
            flips = sum((a != b).sum() for a, b in zip(seen[-2], seen[-1], strict=True))
            count = sum(codes.size for codes in seen[-1])
            zeros = sum((codes == 0).sum() for codes in seen[-1])
            assert entry.values["code_flips"] == pytest.approx(flips / count)
            assert entry.values["zero_fraction"] == pytest.approx(zeros / count)
            assert flips

    assert trainer.run(look)


def _codes(trainer: Trainer) -> list[NDArray[np.int8]]:
    return [
        ternary.unpack(leaf.packed, columns=leaf.columns)
        for _, leaf in named_leaves(freeze(trainer.model.stored()))
        if isinstance(leaf, Ternary)
    ]
