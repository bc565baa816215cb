"""A preset's name tells the truth, and looking at one costs next to nothing."""

import tracemalloc

import pytest

from nanochat.errors import ConfigError
from nanochat.presets import PRESETS, preset
from nanochat.shapes import num_parameters

NAMED_COUNTS = {
    "nano-125m": 125e6,
    "small-560m": 560e6,
    "nano-1b": 1e9,
    "medium-3b-moe": 3e9,
    "large-7b": 7e9,
}


@pytest.mark.parametrize("name", NAMED_COUNTS)
def test_a_preset_has_the_parameters_that_its_name_says(name: str) -> None:
    config = preset(name)

    assert num_parameters(config) == pytest.approx(NAMED_COUNTS[name], rel=0.03)


def test_every_number_in_a_name_is_tested() -> None:
    assert set(PRESETS) == {"tiny", "tiny-plain", "d20"} | set(NAMED_COUNTS)


def test_the_tiny_model_has_about_six_million_parameters() -> None:
    assert num_parameters(preset("tiny")) == 5_771_648


def test_d20_has_the_561_million_parameters_of_its_model() -> None:
    # The original counts 560,988,160; mHC, norms and QK-norm add the rest.
    assert num_parameters(preset("d20")) == 560_988_160 + 58_880


@pytest.mark.parametrize("name", PRESETS)
def test_the_shapes_of_a_preset_allocate_no_weights(name: str) -> None:
    tracemalloc.start()

    num_parameters(preset(name))

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2_000_000


@pytest.mark.parametrize("name", PRESETS)
def test_the_widths_of_a_preset_suit_every_format(name: str) -> None:
    config = preset(name)

    widths = (config.width, config.ffn_width, config.expert_width, config.shared_expert_width)
    assert [width % 256 for width in widths] == [0, 0, 0, 0]
    assert config.head_dim in (64, 128)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "tiny-plain"])
def test_a_preset_has_four_static_lite_streams(name: str) -> None:
    config = preset(name)

    assert (config.num_streams, config.coefficients, config.mixer) == (4, "static", "lite")


def test_an_unknown_preset_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown preset 'nano'.*choose one of tiny, tiny-plain"):
        preset("nano")
