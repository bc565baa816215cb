"""This file holds what an exported ONNX file promises: the model's numbers, in both targets, and the whole model."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import Bundle, golden_from_json
from nanochat.config import ModelConfig, config_from_dict
from nanochat.errors import ConfigError, InputError, SaveError
from nanochat.export.export import export_model
from nanochat.export.formats import format_named
from nanochat.export.onnx import write as exporter
from nanochat.export.onnx.standard import SESSION_CONFIG
from nanochat.export.onnx.state import MISPLACED, memory_shapes, present_name
from nanochat.export.onnx.write import Target, export_onnx
from nanochat.export.transform import with_exit_threshold
from nanochat.init import freeze
from nanochat.lm import Model
from nanochat.model import forward
from nanochat.proof.golden import record
from nanochat.slots import slots
from nanochat.weights import Dense, named_leaves
from tests.parity.random_models import random_tokenizer, random_weights

VOCABULARY = 61
DELTA = {"delta_heads": 2, "delta_key_dim": 48, "delta_value_dim": 128}
TARGETS: tuple[Target, ...] = ("ort", "standard")
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied head": {"tie_embeddings": False},
    "dense tables": {"table_format": "dense"},
    "dense untied tables": {"table_format": "dense", "tie_embeddings": False},
    "ternary table": {"table_format": "ternary"},
    "ternary tables": {"table_format": "ternary", "tie_embeddings": False},
    "float16 table, bfloat16 head": {
        "table_format": "float16",
        "head_format": "bfloat16",
        "tie_embeddings": False,
    },
    "weight block 256": {"width": 256, "ffn_width": 256, "head_dim": 64, "weight_block": 256},
    "a scale per row": {"width": 384, "ffn_width": 384, "weight_block": "row"},
    "NTK scale": {"rope_scale": 4.0, "rope_theta": 500.0},
    "rotation of some features, with a magnitude": {
        "rope_type": "factors",
        "rope_factors": (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5),
        "rope_dims": 16,
        "rope_magnitude": 1.2,
    },
    "no QK norm": {"qk_norm": False},
    "as many key heads": {"num_kv_heads": 4},
    "gated attention, sub-norms": {"attention_gate": True, "sub_norm": True},
    "relu2": {"activation": "relu2"},
    "relu2_glu": {"activation": "relu2_glu"},
    "delta and attention": {"layer_pattern": ("delta", "attention"), "num_layers": 2, **DELTA},
    "delta of few key heads": {
        "layer_pattern": ("delta", "attention"),
        "num_layers": 2,
        **DELTA,
        "delta_heads": 4,
        "delta_key_heads": 2,
        "delta_gates": "bfloat16",
    },
    "delta with ternary gates": {"layer_pattern": ("delta",), "delta_gates": "ternary", **DELTA},
    "rotated": {"rotation_block": 128, "table_format": "ternary", "tie_embeddings": False},
    "rotated by 32": {"rotation_block": 32, "table_format": "ternary"},
    "scaled": {"embedding_scale": 12.0, "residual_scale": 0.25, "logit_scale": 9.0},
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


def prompts(batch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, VOCABULARY, (batch, length))


def ratios(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> NDArray[np.float64]:
    """RMS ratio of each token, (B, T)."""
    error = np.square(actual.astype(np.float64) - expected).mean(axis=-1)
    return np.asarray(np.sqrt(error / np.square(expected.astype(np.float64)).mean(axis=-1)))


def source(**changes: Any) -> Bundle:
    model = config(**changes)
    return Bundle(
        name="small",
        config=model,
        weights=freeze(random_weights(model)),
        tokenizer=random_tokenizer(),
        generation={},
    )


class Session:
    """A file at work as any program runs it: what it remembers is given back to it."""

    def __init__(self, path: Path, model: ModelConfig, *, batch: int) -> None:
        options = onnxruntime.SessionOptions()
        # Errors that are expected need not stand on the screen.
        options.log_severity_level = 4
        for key, value in SESSION_CONFIG.items():
            options.add_session_config_entry(key, value)
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        sizes = {"batch": batch, "past": 0}
        self._past = {
            name: np.zeros(
                [dim if isinstance(dim, int) else sizes[dim] for dim in shape], np.float32
            )
            for name, shape in memory_shapes(slots(model)).items()
        }
        self._mask = np.zeros((batch, 0), np.int64)

    def run(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        mask = np.ones_like(ids) if mask is None else mask
        self._mask = np.concatenate([self._mask, mask], axis=1)
        feed = {"input_ids": ids, "attention_mask": self._mask, **self._past}
        logits, *presents = self._session.run(["logits", *map(present_name, self._past)], feed)
        self._past = dict(zip(self._past, presents, strict=True))
        return np.asarray(logits, np.float32)


def run(
    path: Path, model: ModelConfig, ids: NDArray[np.int64], *chunks: int
) -> NDArray[np.float32]:
    """Logits of the tokens, given to the file in chunks that end before each of `chunks`."""
    session = Session(path, model, batch=len(ids))
    return np.concatenate([session.run(part) for part in np.split(ids, chunks, axis=1)], axis=1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_a_file_computes_what_the_reference_computes(
    case: str, target: Target, tmp_path: Path
) -> None:
    small, ids = source(**CASES[case]), prompts(9, 6)
    ops = ReferenceOps()
    expected = forward(ops.tokens(ids), ops.prepare(small.weights), small.config, ops)
    export_onnx(small, tmp_path / "model.onnx", target=target)

    whole = ratios(expected, run(tmp_path / "model.onnx", small.config, ids))
    parts = ratios(expected, run(tmp_path / "model.onnx", small.config, ids, 2, 4, 5))

    # A difference of 1e-7 can flip a rounding to int8, and then changes that sequence by up to 1e-2 from there on; but
    # sequences are independent, so at every position some have met no flip, and those are as equal as float32 allows.
    assert np.quantile(whole, 1 / 3, axis=0).max() <= 2e-6
    assert np.quantile(parts, 1 / 3, axis=0).max() <= 2e-6
    assert max(np.sqrt(np.mean(whole**2)), np.sqrt(np.mean(parts**2))) <= 3e-2


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", ["plain", "delta and attention"])
def test_padding_on_the_right_of_any_call_changes_nothing(
    case: str, target: Target, tmp_path: Path
) -> None:
    small, ids = source(**CASES[case]), prompts(2, 9)
    path = tmp_path / "model.onnx"
    export_onnx(small, path, target=target)
    # The first sequence gives 2, 3 and 1 of its tokens to calls of 5, 3 and 1.
    padded = ids.copy()
    padded[0] = [*ids[0, :2], 7, 7, 7, *ids[0, 2:6]]
    mask = np.ones_like(ids)
    mask[0, 2:5] = 0

    session = Session(path, small.config, batch=2)
    calls = [slice(0, 5), slice(5, 8), slice(8, 9)]
    both = np.concatenate([session.run(padded[:, s], mask[:, s]) for s in calls], axis=1)

    first = both[:1, mask[0] == 1]
    assert ratios(run(path, small.config, ids[:1, :6], 2, 5), first).max() <= 2e-6
    assert ratios(run(path, small.config, ids[1:], 5, 8), both[1:]).max() <= 2e-6


@pytest.mark.parametrize("row", [[0, 1, 1], [1, 0, 1]], ids=["left", "inside"])
@pytest.mark.parametrize(
    ("case", "target"), [("plain", "ort"), ("delta alone", "ort"), ("delta alone", "standard")]
)
def test_padding_elsewhere_fails_with_the_reason(
    case: str, target: Target, row: list[int], tmp_path: Path
) -> None:
    small = source(**CASES[case])
    export_onnx(small, tmp_path / "model.onnx", target=target)
    session = Session(tmp_path / "model.onnx", small.config, batch=2)

    with pytest.raises(Exception, match=MISPLACED):
        session.run(prompts(2, 3), np.array([[1, 1, 1], row]))


def test_padding_may_stand_anywhere_before_standard_attention(tmp_path: Path) -> None:
    small, ids = source(), prompts(2, 8)
    path = tmp_path / "model.onnx"
    export_onnx(small, path, target="standard")
    mask = np.ones_like(ids)
    mask[0, :3] = 0

    session = Session(path, small.config, batch=2)
    both = np.concatenate([session.run(ids[:, :6], mask[:, :6]), session.run(ids[:, 6:])], axis=1)

    assert ratios(run(path, small.config, ids[:1, 3:], 3), both[:1, 3:]).max() <= 2e-6
    assert ratios(run(path, small.config, ids[1:], 6), both[1:]).max() <= 2e-6


@pytest.mark.parametrize("case", CASES)
def test_a_standard_file_has_no_operator_outside_the_standard(case: str, tmp_path: Path) -> None:
    export_onnx(source(**CASES[case]), tmp_path / "model.onnx", target="standard")

    model = onnx.load(tmp_path / "model.onnx")
    nodes = list(model.graph.node)
    for node in nodes:
        nodes += [n for a in node.attribute for n in a.g.node]

    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 25)]
    assert {node.domain for node in nodes} == {""}
    onnx.checker.check_model(model, full_check=True)


def test_standard_files_hold_ternary_weights_in_two_bits(tmp_path: Path) -> None:
    export_onnx(source(), tmp_path / "model.onnx", target="standard")

    tensors = {t.name: t for t in onnx.load(tmp_path / "model.onnx").graph.initializer}

    codes = tensors["layers.0.network.gate+up.codes"]
    assert codes.data_type == onnx.TensorProto.UINT2
    assert len(codes.raw_data) == 2 * 128 * 128 // 4


def test_all_integer_products_take_the_fast_kernel(tmp_path: Path) -> None:
    export_onnx(source(**CASES["all at once"]), tmp_path / "model.onnx")

    nodes = [n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "MatMulNBits"]
    found = [{a.name: a.i for a in node.attribute} for node in nodes]

    assert {(a["bits"], a["block_size"], a["accuracy_level"]) for a in found} == {
        (2, 128, 4),
        (8, 128, 4),
    }
    # Only the default zero point runs in integers: no fourth input.
    assert {len(node.input) for node in nodes} == {3}


def test_attention_takes_one_product_and_one_operator(tmp_path: Path) -> None:
    export_onnx(source(qk_norm=False), tmp_path / "model.onnx")

    nodes = {n.op_type: n for n in onnx.load(tmp_path / "model.onnx").graph.node}

    attention = nodes["GroupQueryAttention"]
    # Queries, keys and values are its first input, as they were multiplied; it rotates them itself.
    assert attention.input[1:3] == ["", ""]
    assert {a.name: a.i for a in attention.attribute}["do_rotary"] == 1
    assert "RotaryEmbedding" not in nodes


def test_the_size_of_a_file_does_not_depend_on_the_context(tmp_path: Path) -> None:
    export_onnx(source(context_length=64), tmp_path / "short.onnx")
    export_onnx(source(context_length=2**20), tmp_path / "long.onnx")

    short, long = ((tmp_path / f"{name}.onnx").stat().st_size for name in ("short", "long"))
    assert long - short < 1000


@pytest.mark.parametrize("target", TARGETS)
def test_names_are_those_of_onnxruntime_genai(target: Target, tmp_path: Path) -> None:
    export_onnx(source(**CASES["delta and attention"]), tmp_path / "model.onnx", target=target)

    graph = onnx.load(tmp_path / "model.onnx").graph

    assert [value.name for value in graph.input] == [
        "input_ids",
        "attention_mask",
        "past.0.conv",
        "past.0.recurrent",
        "past_key_values.1.key",
        "past_key_values.1.value",
    ]
    assert [value.name for value in graph.output] == [
        "logits",
        "present.0.conv",
        "present.0.recurrent",
        "present.1.key",
        "present.1.value",
    ]


def test_the_file_says_what_the_model_is_and_what_it_computes(tmp_path: Path) -> None:
    small = with_exit_threshold(source(loop_count=2, exit_threshold=0.5), 1.0)
    export_onnx(small, tmp_path / "model.onnx")

    loaded = onnx.load(tmp_path / "model.onnx")
    metadata = {entry.key: entry.value for entry in loaded.metadata_props}

    assert metadata["name"] == "small"
    assert config_from_dict(json.loads(metadata["config"])) == config(loop_count=2)
    golden = golden_from_json(metadata["golden"], "golden")
    assert dataclasses.replace(golden, graph="") == record(small)
    assert golden.graph


def test_the_file_holds_each_table_once_and_nothing_for_training(tmp_path: Path) -> None:
    export_onnx(source(loop_count=2, num_ahead=1), tmp_path / "model.onnx")

    loaded = onnx.load(tmp_path / "model.onnx")
    named = [t.name for t in loaded.graph.initializer if not t.name.startswith("literal")]

    assert [name for name in named if not name.startswith("layers.0.")] == [
        "embedding.codes",
        "embedding.scales",
        "norm",
    ]
    # The exit gate, which decides nothing at a threshold of 1, is no part of the graph.
    leaves = json.loads({e.key: e.value for e in loaded.metadata_props}["leaves"])
    assert sorted(leaves) == ["exit.bias", "exit.norm", "exit.weight"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"weight_block": 256, "activation_block": 256}, "activation_block=256"),
        ({"weight_block": 64, "activation_block": 64}, "activation_block=64: .* blocks of 128"),
        ({"weight_block": "row", "activation_block": "token"}, "activation_block='token'"),
        ({"table_format": "int8_32"}, 'table_format="int8_32": .* none for 32'),
        ({"table_format": "int8_16"}, 'table_format="int8_16": .* none for 16'),
        (
            {"head_format": "int8_16", "tie_embeddings": False},
            'head_format="int8_16": .* none for 16',
        ),
        ({"loop_count": 2, "exit_threshold": 0.5}, "pass exit_threshold=1"),
    ],
    ids=[
        "activation block",
        "blocks of 64",
        "activations per token",
        "table of blocks of 32",
        "table of blocks of 16",
        "head of blocks of 16",
        "adaptive depth",
    ],
)
def test_a_model_that_a_graph_cannot_compute_is_refused(
    changes: dict[str, Any], reason: str, target: Target, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what stood there")

    with pytest.raises(ConfigError, match=reason):
        export_onnx(source(width=256, ffn_width=256, head_dim=64, **changes), path, target=target)

    assert path.read_bytes() == b"what stood there"


@pytest.mark.parametrize("head_dim", [2, 8, 12, 24, 40, 72, 264])
def test_heads_that_the_fast_attention_cannot_take_are_refused_and_the_standard_takes_them(
    head_dim: int, tmp_path: Path
) -> None:
    heads = 128 // math.gcd(128, head_dim)
    small = source(
        vocab_size=320,
        width=128,
        ffn_width=128,
        weight_block=128,
        head_dim=head_dim,
        num_heads=heads,
        num_kv_heads=heads,
    )
    with pytest.raises(ConfigError, match=f"head_dim={head_dim}.*--target standard"):
        export_onnx(small, tmp_path / "model.onnx")
    for kind, verify in (("onnx", False), ("web", False)):
        with pytest.raises(ConfigError, match=f"head_dim={head_dim}: ONNX Runtime's fast"):
            export_model(small, tmp_path / kind, kind=kind, verify=verify)
    with pytest.raises(ConfigError, match="run the model on another backend"):
        Model.from_bundle(small, backend="onnx")
    assert not list(tmp_path.iterdir())

    # What the message says.
    options = format_named("onnx").choose(target="standard")
    exported = export_model(small, tmp_path / "standard", kind="onnx", options=options)

    assert exported.parity is not None
    assert exported.parity.ok


@pytest.mark.parametrize("head_dim", [16, 48, 80, 112, 320])
def test_other_heads_run(head_dim: int, tmp_path: Path) -> None:
    heads = 128 // math.gcd(128, head_dim)
    shape = {"head_dim": head_dim, "num_heads": heads, "num_kv_heads": heads}

    exported = export_model(
        source(vocab_size=320, width=128, ffn_width=128, weight_block=128, **shape),
        tmp_path / "m",
        kind="onnx",
    )

    assert exported.parity is not None
    assert exported.parity.ok


def test_an_unknown_target_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose one of ort, standard"):
        export_onnx(source(), tmp_path / "model.onnx", target="fast")  # type: ignore[arg-type]  # a mistake


def test_the_file_holds_projections_in_float16(tmp_path: Path) -> None:
    small = source(num_streams=4, coefficients="dynamic")
    export_onnx(small, tmp_path / "model.onnx")

    tensors = {t.name: t for t in onnx.load(tmp_path / "model.onnx").graph.initializer}

    name = "layers.0.mixer_site.mhc.projection"
    leaf = dict(named_leaves(small.weights))[name]
    assert isinstance(leaf, Dense)
    assert leaf.values.any()
    found = onnx.numpy_helper.to_array(tensors[name])
    assert found.dtype == np.float16
    assert np.array_equal(found, leaf.values)


def test_a_path_that_cannot_be_replaced_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()

    with pytest.raises(SaveError, match="cannot write"):
        export_onnx(source(), tmp_path / "model.onnx")

    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_tensors_too_large_for_one_file_stand_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, ids = source(), prompts(2, 4)
    export_onnx(small, tmp_path / "one.onnx")
    monkeypatch.setattr(exporter, "_LARGEST_FILE", 0)

    export_onnx(small, tmp_path / "two.onnx")

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["one.onnx", "two.onnx", "two.onnx.data"]
    one, two = (run(tmp_path / f"{name}.onnx", small.config, ids) for name in ("one", "two"))
    assert np.array_equal(one, two)


def test_progress_is_told_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    export_onnx(
        source(**CASES["loop"]),
        tmp_path / "model.onnx",
        progress=lambda done, of: told.append((done, of)),
    )

    # One layer before the loop, two times one in it, one behind it, and the writing.
    assert told == [(number, 5) for number in range(1, 6)]
