"""The model that ships: the main job, on every backend and through every export."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nanochat
from nanochat import backends, checkpoint
from nanochat.bundle import Bundle
from nanochat.config import config_to_dict
from nanochat.export.formats import load
from nanochat.export.gguf.write import write_gguf
from nanochat.export.onnx.engine import OnnxEngine
from nanochat.export.onnx.write import Target, export_onnx
from nanochat.export.verify import verify_model
from nanochat.lm import Model
from nanochat.presets import preset
from nanochat.proof.parity import check_parity
from nanochat.text.tokenizer import Tokenizer
from nanochat.training.flat_recipe import nested
from nanochat.training.recipe import recipe_from_dict
from nanochat.weights import Dense, Stored, map_leaves, named_leaves
from nanochat.zoo.hub import resolve
from tests.export.pages import tiny

PROMPT = "fn main() {"
RUST = """\
impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.x, self.y)
    }
}
"""


@pytest.fixture(scope="module")
def directory() -> Path:
    return resolve("nanochat-tiny")


@pytest.fixture(scope="module")
def reference() -> Model:
    return nanochat.from_pretrained("nanochat-tiny", backend="reference")


@pytest.mark.parametrize("backend", backends.names())
def test_every_backend_writes_the_same_greedy_text(reference: Model, backend: str) -> None:
    model = nanochat.from_pretrained("nanochat-tiny", backend=backend)

    assert model.generate(PROMPT, max_tokens=40, seed=0) == reference.generate(
        PROMPT, max_tokens=40, seed=0
    )


@pytest.mark.parametrize("backend", backends.names())
def test_the_same_seed_samples_the_same_text_on_every_backend(
    reference: Model, backend: str
) -> None:
    model = nanochat.from_pretrained("nanochat-tiny", backend=backend)

    texts = [m.generate(PROMPT, max_tokens=24, temperature=0.7, seed=3) for m in (model, reference)]

    assert texts[0] == texts[1]


def test_it_has_learned_rust(reference: Model) -> None:
    bits = reference.score(RUST).bits_per_byte
    shuffled = "".join(np.random.default_rng(0).permutation(list(RUST)))

    assert bits < 1.5
    assert reference.score(shuffled).bits_per_byte > 3


def test_its_streams_differ_and_its_mixers_have_moved(directory: Path) -> None:
    _, weights = checkpoint.load(directory)
    mixers = {n: leaf.values for n, leaf in named_leaves(weights) if n.endswith(".mhc.mix")}  # type: ignore[union-attr]

    start = np.array([0.0] + [preset("tiny").mixer_bias] * 23, np.float32)
    moved = [name for name, mixer in mixers.items() if np.abs(mixer - start).max() > 0.05]
    # The first site mixes streams that are still equal, and the mean after the last undoes any doubly stochastic
    # mixing: those two have no gradient, in any model.
    assert moved == list(mixers)[1:-1]
    assert len(moved) == 10


def test_it_is_the_tiny_preset_and_its_recipe_is_with_it(directory: Path) -> None:
    recipe = recipe_from_dict(nested(json.loads((directory / "recipe.json").read_text())))

    assert config_to_dict(recipe.model) == config_to_dict(preset("tiny"))
    assert checkpoint.load_config(directory) == preset("tiny")
    assert "licence" in (directory / "README.md").read_text().lower()


@pytest.mark.parametrize("backend", backends.names())
def test_its_files_and_what_they_compute_are_verified(directory: Path, backend: str) -> None:
    checked = verify_model(directory, backend=backend)

    assert checked.files is not None
    assert checked.golden is not None


def test_it_takes_at_most_five_megabytes(directory: Path) -> None:
    assert sum(file.stat().st_size for file in directory.iterdir()) < 5_000_000


def test_its_gguf_file_gives_the_same_logits(directory: Path, tmp_path: Path) -> None:
    config, weights = checkpoint.load(directory)
    file = tmp_path / "tiny.gguf"
    tokenizer = Tokenizer.load(directory)
    write_gguf(
        file,
        Bundle(
            name="nanochat-tiny",
            config=config,
            weights=weights,
            tokenizer=tokenizer,
            generation={},
        ),
    )

    loaded = nanochat.from_pretrained(str(file), backend="reference")
    original = nanochat.from_pretrained("nanochat-tiny", backend="reference")

    ids = original.encode_prompt(RUST)
    np.testing.assert_array_equal(loaded.logits(ids), original.logits(ids))
    assert load(file).config == config


@pytest.mark.parametrize("target", ["ort", "standard"])
def test_its_onnx_file_gives_the_same_logits(target: Target, tmp_path: Path) -> None:
    file = tmp_path / "tiny.onnx"
    export_onnx(tiny(), file, target=target)

    parity = check_parity(tiny(), OnnxEngine(file))

    assert parity.ok
    assert parity.same_text
    assert parity.report.median_ratio <= 1e-4


@pytest.mark.parametrize(
    "changes",
    [{"rope_theta": 9000.0}, {"mixer": "identity"}, {"activation_block": 256}],
    ids=str,
)
def test_a_file_that_computes_something_else_is_not_verified(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    export_onnx(tiny(), tmp_path / "tiny.onnx")
    block = changes.get("activation_block", 128)
    other = dataclasses.replace(
        tiny(),
        config=dataclasses.replace(tiny().config, **changes),
        weights=map_leaves(lambda _, leaf: with_block(leaf, block), tiny().weights),
    )

    parity = check_parity(other, OnnxEngine(tmp_path / "tiny.onnx"))

    assert not parity.ok


def with_block(leaf: Stored, block: int) -> Stored:
    return leaf if isinstance(leaf, Dense) else dataclasses.replace(leaf, activation_block=block)
