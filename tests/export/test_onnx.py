"""This file holds what an exported ONNX file promises: the model's numbers, in ONNX Runtime's fast kernels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference import ReferenceOps
from nanochat.config import ModelConfig, config_from_dict
from nanochat.errors import ConfigError, FormatError, InputError, SaveError
from nanochat.export import onnx as exporter
from nanochat.export.onnx import export_onnx, verify_onnx
from nanochat.export.onnx_session import OnnxSession
from nanochat.init import init
from nanochat.model import forward
from nanochat.weights import Dense, Stored, Weights, map_leaves, named_leaves

VOCABULARY = 61
DELTA = {"delta_heads": 2, "delta_key_dim": 48, "delta_value_dim": 128}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied head": {"tie_embeddings": False},
    "dense tables": {"table_format": "dense"},
    "dense untied tables": {"table_format": "dense", "tie_embeddings": False},
    "weight block 256": {"width": 256, "ffn_width": 256, "head_dim": 64, "weight_block": 256},
    "a scale per row": {"width": 384, "ffn_width": 384, "weight_block": "row"},
    "NTK scale": {"rope_scale": 4.0, "rope_theta": 500.0},
    "no QK norm": {"qk_norm": False},
    "as many key heads": {"num_kv_heads": 4},
    "gated attention, sub-norms": {"attention_gate": True, "sub_norm": True},
    "relu2": {"activation": "relu2"},
    "relu2_glu": {"activation": "relu2_glu"},
    "delta and attention": {"layer_pattern": ("delta", "attention"), "num_layers": 2, **DELTA},
    "delta alone": {"layer_pattern": ("delta",), "sub_norm": True, "delta_conv_width": 1, **DELTA},
    "experts": {"num_experts": 5, "expert_width": 128, "sub_norm": True},
    "shared expert": {"num_experts": 3, "expert_width": 128, "shared_expert_width": 128},
    "mHC lite": {"num_streams": 4},
    "mHC dynamic lite": {"num_streams": 4, "coefficients": "dynamic"},
    "mHC sinkhorn": {"num_streams": 2, "mixer": "sinkhorn"},
    "mHC dynamic sinkhorn": {"num_streams": 4, "mixer": "sinkhorn", "coefficients": "dynamic"},
    "mHC identity": {"num_streams": 2, "mixer": "identity"},
    "mHC dynamic identity": {"num_streams": 2, "mixer": "identity", "coefficients": "dynamic"},
    "loop": {"num_layers": 3, "loop_count": 2, "loop_prelude": 1, "loop_coda": 1},
    "all at once": {
        "num_layers": 2,
        "layer_pattern": ("delta", "attention"),
        "loop_count": 2,
        "loop_prelude": 1,
        "num_streams": 4,
        "coefficients": "dynamic",
        "num_experts": 3,
        "expert_width": 128,
        "attention_gate": True,
        "num_ahead": 1,
        **DELTA,
    },
}


def config(**changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "width": 128,
        "num_layers": 1,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "ffn_width": 128,
        "weight_block": 128,
        "num_streams": 1,
    }
    return ModelConfig(**{**fields, **changes})


def random_weights(model: ModelConfig, seed: int = 0) -> Weights[Stored]:
    """Initial weights, with noise on those that start equal or zero."""
    generator = np.random.default_rng(seed)

    def disturb(_: str, leaf: Stored) -> Stored:
        if not isinstance(leaf, Dense):
            return leaf
        noise = generator.standard_normal(leaf.values.shape, np.float32)
        values = leaf.values + np.float32(0.1) * noise
        return Dense(values=values.astype(leaf.values.dtype))

    return map_leaves(disturb, init(model, generator))


def prompts(batch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, VOCABULARY, (batch, length))


def ratios(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> NDArray[np.float64]:
    """RMS ratio of each token, (B, T)."""
    error = np.square(actual.astype(np.float64) - expected).mean(axis=-1)
    return np.asarray(np.sqrt(error / np.square(expected.astype(np.float64)).mean(axis=-1)))


def run(path: Path, ids: NDArray[np.int64], *chunks: int) -> NDArray[np.float32]:
    """Logits of the tokens, given to the file in chunks that end before each of `chunks`."""
    session = OnnxSession(path, batch=len(ids))
    return np.concatenate([session.run(part) for part in np.split(ids, chunks, axis=1)], axis=1)


@pytest.mark.parametrize("case", CASES)
def test_a_file_computes_what_the_reference_computes(case: str, tmp_path: Path) -> None:
    model, ids = config(**CASES[case]), prompts(9, 6)
    weights, ops = random_weights(model), ReferenceOps()
    expected = forward(ops.tokens(ids), ops.prepare(weights), model, ops)
    export_onnx(model, weights, tmp_path / "model.onnx")

    whole = ratios(expected, run(tmp_path / "model.onnx", ids))
    parts = ratios(expected, run(tmp_path / "model.onnx", ids, 2, 4, 5))

    # A difference of 1e-7 can flip a rounding to int8, and then changes that sequence by up to 1e-2 from there on; but
    # sequences are independent, so at every position some have met no flip, and those are as equal as float32 allows.
    assert np.quantile(whole, 1 / 3, axis=0).max() <= 2e-6
    assert np.quantile(parts, 1 / 3, axis=0).max() <= 2e-6
    assert max(np.sqrt(np.mean(whole**2)), np.sqrt(np.mean(parts**2))) <= 3e-2


@pytest.mark.parametrize("case", ["plain", "delta and attention"])
def test_padding_on_the_left_changes_nothing(case: str, tmp_path: Path) -> None:
    model, ids = config(**CASES[case]), prompts(2, 8)
    export_onnx(model, random_weights(model), tmp_path / "model.onnx")
    mask = np.ones_like(ids)
    mask[0, :3] = 0

    session = OnnxSession(tmp_path / "model.onnx", batch=2)
    first = session.run(ids[:, :6], mask=mask[:, :6])
    both = np.concatenate([first, session.run(ids[:, 6:])], axis=1)

    assert ratios(run(tmp_path / "model.onnx", ids[:1, 3:], 3), both[:1, 3:]).max() <= 2e-6
    assert ratios(run(tmp_path / "model.onnx", ids[1:], 6), both[1:]).max() <= 2e-6


def test_all_integer_products_take_the_fast_kernel(tmp_path: Path) -> None:
    model = config(**CASES["all at once"])
    export_onnx(model, random_weights(model), tmp_path / "model.onnx")

    nodes = [n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "MatMulNBits"]
    found = [{a.name: a.i for a in node.attribute} for node in nodes]

    assert {(a["bits"], a["block_size"], a["accuracy_level"]) for a in found} == {
        (2, 128, 4),
        (8, 128, 4),
    }
    # Only the default zero point runs in integers: no fourth input.
    assert {len(node.input) for node in nodes} == {3}


def test_names_are_those_of_onnxruntime_genai(tmp_path: Path) -> None:
    model = config(**CASES["delta and attention"])
    export_onnx(model, random_weights(model), tmp_path / "model.onnx")

    graph = onnx.load(tmp_path / "model.onnx").graph

    assert [value.name for value in graph.input] == [
        "input_ids",
        "attention_mask",
        "past.0.conv_q",
        "past.0.conv_k",
        "past.0.conv_v",
        "past.0.recurrent",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ]
    assert [value.name for value in graph.output] == [
        "logits",
        "present.0.conv_q",
        "present.0.conv_k",
        "present.0.conv_v",
        "present.0.recurrent",
        "present.1.key",
        "present.1.value",
    ]


def test_the_file_holds_the_name_and_the_configuration(tmp_path: Path) -> None:
    model = config(loop_count=2, exit_threshold=0.5)
    export_onnx(
        model, random_weights(model), tmp_path / "model.onnx", name="small", exit_threshold=1.0
    )

    loaded = onnx.load(tmp_path / "model.onnx")
    metadata = {entry.key: entry.value for entry in loaded.metadata_props}

    assert metadata["name"] == "small"
    assert config_from_dict(json.loads(metadata["config"])) == config(loop_count=2)


def test_the_file_holds_each_table_once_and_nothing_for_training(tmp_path: Path) -> None:
    model = config(loop_count=2, num_ahead=1)
    export_onnx(model, random_weights(model), tmp_path / "model.onnx")

    tensors = onnx.load(tmp_path / "model.onnx").graph.initializer
    named = [tensor.name for tensor in tensors if not tensor.name.startswith("literal")]

    assert [name for name in named if not name.startswith("layers.0.")] == [
        "embedding.codes",
        "embedding.scales",
        "norm",
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_block": 256, "activation_block": 256}, "activation_block=256"),
        ({"weight_block": "row", "activation_block": "token"}, "activation_block='token'"),
        ({"loop_count": 2, "exit_threshold": 0.5}, "pass exit_threshold=1"),
    ],
    ids=["activation block", "activations per token", "adaptive depth"],
)
def test_a_model_that_a_graph_cannot_compute_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = config(**{"width": 256, "ffn_width": 256, "head_dim": 64, **changes})
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what stood there")

    with pytest.raises(ConfigError, match=reason):
        export_onnx(model, random_weights(model), path)

    assert path.read_bytes() == b"what stood there"


def test_the_file_holds_projections_in_float16(tmp_path: Path) -> None:
    model = config(num_streams=4, coefficients="dynamic")
    weights = random_weights(model)
    export_onnx(model, weights, tmp_path / "model.onnx")

    tensors = {t.name: t for t in onnx.load(tmp_path / "model.onnx").graph.initializer}

    name = "layers.0.mixer_site.mhc.projection"
    leaf = dict(named_leaves(weights))[name]
    assert isinstance(leaf, Dense)
    assert leaf.values.any()
    found = onnx.numpy_helper.to_array(tensors[name])
    assert found.dtype == np.float16
    assert np.array_equal(found, leaf.values)


def test_a_path_that_cannot_be_replaced_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()

    with pytest.raises(SaveError, match="cannot write"):
        export_onnx(config(), random_weights(config()), tmp_path / "model.onnx")

    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_tensors_too_large_for_one_file_stand_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, ids = random_weights(config()), prompts(2, 4)
    export_onnx(config(), weights, tmp_path / "one.onnx")
    monkeypatch.setattr(exporter, "_LARGEST_FILE", 0)

    export_onnx(config(), weights, tmp_path / "two.onnx")

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["one.onnx", "two.onnx", "two.onnx.data"]
    assert np.array_equal(run(tmp_path / "one.onnx", ids), run(tmp_path / "two.onnx", ids))


def test_a_report_compares_the_whole_prompt_and_the_steps(tmp_path: Path) -> None:
    model = config(loop_count=2, exit_threshold=0.5)
    weights = random_weights(model)
    export_onnx(model, weights, tmp_path / "model.onnx", exit_threshold=1.0)

    report = verify_onnx(tmp_path / "model.onnx", model, weights, prompts(3, 5))

    assert report.ok
    assert report.num_tokens == 2 * 3 * 5


def test_a_report_tells_another_models_file(tmp_path: Path) -> None:
    export_onnx(config(), random_weights(config()), tmp_path / "model.onnx")

    report = verify_onnx(
        tmp_path / "model.onnx", config(), random_weights(config(), seed=1), prompts(1, 4)
    )

    assert not report.ok


def test_a_corrupt_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no protocol buffer")

    with pytest.raises(FormatError, match="cannot load it"):
        OnnxSession(tmp_path / "model.onnx", batch=1)


def test_a_prompt_of_one_token_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 2 tokens"):
        verify_onnx(tmp_path / "model.onnx", config(), random_weights(config()), prompts(1, 1))
