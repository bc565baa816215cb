"""Hybrids of Gated DeltaNet go to mlx-lm's own architectures, and are read back as other people's folders are."""

import dataclasses
import json
from pathlib import Path

import pytest

from nanochat.blocks.plain import plain
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError
from nanochat.export.export import export_model
from nanochat.export.folders.affine import AffineMatrices
from nanochat.export.folders.fields import Fields
from nanochat.export.folders.read import load_foreign_folder
from nanochat.export.folders.rope import partial_rope_fields, read_rope
from nanochat.export.format import ModelFiles
from nanochat.export.formats import FORMATS, detect, load
from nanochat.export.stock.mlx import write_mlx
from nanochat.export.verify import verify_model
from nanochat.weights import Stored, Weights, map_leaves
from tests.export.folder_models import build, keep_ternary, save_mlx
from tests.export.stock_models import BASE, HYBRID, arrays, make_bundle

TERNARY = "hybrid, ternary tables"


def read_as_others(folder: Path) -> tuple[ModelConfig, Weights[Stored]]:
    """By ``config.json`` and tensors alone, as what somebody else has written."""
    fields = json.loads((folder / "config.json").read_text())
    config, weights = load_foreign_folder(folder, fields, AffineMatrices)
    return config, map_leaves(lambda _, leaf: plain(leaf), weights)


@pytest.mark.parametrize("case", [TERNARY, "hybrid, all ternary"])
def test_a_folder_tells_the_model_without_its_manifest(case: str, tmp_path: Path) -> None:
    source = make_bundle(case)
    write_mlx(tmp_path, source)

    config, weights = read_as_others(tmp_path)

    expected = source.config
    if expected.rope_scale != 1:
        # The factor is in the base.
        base = expected.rope_theta * expected.rope_scale ** (16 / 14)
        expected = dataclasses.replace(expected, rope_scale=1.0, rope_theta=base)
    expected = dataclasses.replace(
        expected, delta_key_heads=expected.delta_key_heads or expected.delta_heads
    )
    assert config == expected
    assert arrays(weights) == arrays(source.weights)


def test_the_settings_are_those_that_others_write(tmp_path: Path) -> None:
    model = build("qwen3_5")
    save_mlx(model, keep_ternary(model), tmp_path / "theirs")
    theirs = json.loads((tmp_path / "theirs/config.json").read_text())
    source = make_bundle(TERNARY)
    config, weights = read_as_others(tmp_path / "theirs")
    source = dataclasses.replace(source, config=config, weights=weights)

    write_mlx(tmp_path / "ours", source)

    ours = json.loads((tmp_path / "ours/config.json").read_text())
    text = ours["text_config"]
    assert {key: theirs[key] for key in theirs.keys() & ours.keys() - {"text_config"}} == {
        key: ours[key] for key in theirs.keys() & ours.keys() - {"text_config"}
    }
    rope = theirs["text_config"]["rope_parameters"]
    assert text["rope_parameters"] == {key: rope[key] for key in text["rope_parameters"]}
    for key in text.keys() - {"rope_parameters", "dtype"}:
        assert text[key] == theirs["text_config"][key], key


@pytest.mark.parametrize("dims", range(2, 98, 2))
def test_a_share_of_a_head_is_so_many_features(dims: int) -> None:
    for head_dim in range(dims, 258):
        fields = Fields(partial_rope_fields(theta=1e4, dims=dims, head_dim=head_dim))

        found = read_rope(
            fields, theta=None, usual_share=0.25, head_dim=head_dim, context_length=64
        )

        assert found["rope_dims"] == (dims if dims < head_dim else 0)


def test_one_tap_is_refused(tmp_path: Path) -> None:
    config = ModelConfig(**BASE | HYBRID, delta_conv_width=1)
    source = dataclasses.replace(make_bundle("hybrid"), config=config)

    with pytest.raises(ConfigError, match="delta_conv_width=1: its convolutions have two taps"):
        write_mlx(tmp_path / "x", source)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("case", ["hybrid", TERNARY])
def test_an_export_is_proven_in_mlx_lm_and_later(case: str, tmp_path: Path) -> None:
    source = make_bundle(case)

    exported = export_model(source, tmp_path / "x", kind="mlx")

    assert exported.parity is not None
    assert exported.parity.ok
    assert exported.parity.same_text
    assert exported.types["bfloat16"] == "bfloat16"
    bundle = load(tmp_path / "x")
    assert detect(ModelFiles(tmp_path / "x")) is FORMATS["mlx"]
    assert bundle.config == source.config
    assert arrays(bundle.weights) == arrays(source.weights)
    verified = verify_model(tmp_path / "x", backend="reference")
    assert verified.golden is not None
    assert verified.digests
