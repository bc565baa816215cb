"""Files in the shapes of public models are read as models of these shapes."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.public_files import KINDS, SHAPES, write_shape
from nanochat.config import ModelConfig
from nanochat.export.gguf.header import header_config

SMALL = {
    name: replace(
        config,
        vocab_size=512,
        width=1024,
        num_layers=4,
        num_heads=8,
        num_kv_heads=config.num_kv_heads // 2,
        ffn_width=1024,
        delta_heads=8 if config.delta_key_heads else config.delta_heads,
        delta_key_heads=config.delta_key_heads // 4,
        # The file has it as float32.
        norm_eps=2.0**-20,
    )
    for name, config in SHAPES.items()
}


@pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_a_shape_is_a_model_of_that_shape(
    tmp_path: Path, config: ModelConfig, kind: str
) -> None:
    path = tmp_path / "x.gguf"

    write_shape(path, config, KINDS[kind])

    block = {"PQ2_0": 128, "Q2_0": 64, "TQ2_0": 256}[kind]
    found = header_config(path)
    assert found == replace(config, weight_block=block, activation_block=block)
