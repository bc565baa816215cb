"""What a stock architecture can express, the unmodified llama.cpp computes; all else is refused with its reason."""

import platform
import re
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nanochat.bundle import Bundle
from nanochat.checkpoint import require_legal
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, InputError, NanochatError
from nanochat.export.formats import load
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.llama_cpp import LlamaCpp
from nanochat.export.gguf.types import TYPES
from nanochat.export.gguf.write import gguf_architecture, write_gguf
from nanochat.export.stock.architectures import Runtime, obstacles, stock_architecture
from nanochat.export.transform import unroll, with_float16_tables, without_ahead
from nanochat.generation.engine import Engine
from nanochat.proof.golden import record
from nanochat.proof.parity import UnroundedOps, compare, greedy
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import Dense, Stored, Weights, map_leaves, named_leaves
from tests.parity.random_models import random_packed_weights

TOKENIZER = Tokenizer.train(["to be or not to be, that is the question"] * 3, vocab_size=280)
BASE: dict[str, Any] = {
    "vocab_size": 300,
    "width": 256,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "ffn_width": 512,
    "context_length": 128,
    "num_streams": 1,
}
IDS: list[int] = np.random.default_rng(0).integers(0, 300, 10).tolist()
ROW = {"weight_block": "row", "activation_block": "token"}
BITNET = {"qk_norm": False, "sub_norm": True}
ODD = {"width": 320, "num_heads": 5, "num_kv_heads": 1, "head_dim": 48}
EXPERTS = {"num_experts": 4, "expert_width": 256}

# Every option that an architecture of llama.cpp has a place for, with the architecture.
DELTA: dict[str, Any] = {
    "num_layers": 4,
    "layer_pattern": ("delta", "attention"),
    "delta_heads": 4,
    "delta_key_heads": 2,
    "delta_key_dim": 128,
    "delta_value_dim": 128,
    "attention_gate": True,
    "weight_block": 128,
}
EXPRESSIBLE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "qwen3, untied": ("qwen3", {"tie_embeddings": False}),
    "qwen3, a key head for each query head": ("qwen3", {"num_kv_heads": 4}),
    "qwen3, one key head": ("qwen3", {"num_kv_heads": 1}),
    "qwen3, heads wider than the model": ("qwen3", {"head_dim": 128}),
    "qwen3, widths of no power of 2": ("qwen3", ROW | ODD),
    "qwen3, many narrow heads": ("qwen3", {"head_dim": 32, "num_heads": 16}),
    "qwen3, rope theta": ("qwen3", {"rope_theta": 137.0}),
    "qwen3, rope scale": ("qwen3", {"rope_theta": 100.0, "rope_scale": 4.0}),
    "qwen3, eps": ("qwen3", {"norm_eps": 0.1}),
    "qwen3, dense tables": ("qwen3", {"table_format": "dense"}),
    "qwen3, ternary table": ("qwen3", {"table_format": "ternary"}),
    "qwen3, ternary tables": ("qwen3", {"table_format": "ternary", "tie_embeddings": False}),
    "qwen3, scales of rows": ("qwen3", ROW),
    "qwen3, scales of 128": ("qwen3", {"weight_block": 128}),
    "qwen2": ("qwen2", {"qk_norm": False}),
    "qwen2, untied": ("qwen2", {"qk_norm": False, "tie_embeddings": False}),
    "qwen2, one key head": ("qwen2", {"qk_norm": False, "num_kv_heads": 1}),
    "qwen2, rope scale": ("qwen2", {"qk_norm": False, "rope_theta": 100.0, "rope_scale": 4.0}),
    "bitnet": ("bitnet", BITNET),
    "bitnet, scales of rows": ("bitnet", BITNET | ROW),
    "bitnet, one key head": ("bitnet", BITNET | {"num_kv_heads": 1}),
    "bitnet, rope scale": ("bitnet", BITNET | {"rope_theta": 100.0, "rope_scale": 4.0}),
    "qwen35": ("qwen35", DELTA),
    "qwen35, few features rotated": ("qwen35", DELTA | {"rope_dims": 16, "rope_theta": 100.0}),
    "qwen35, as many key heads": ("qwen35", DELTA | {"delta_key_heads": 0}),
    "qwen35, ternary tables and gates": (
        "qwen35", DELTA | {"table_format": "ternary", "tie_embeddings": False, "delta_gates": "ternary"}
    ),
    "qwen35, gates of bfloat16": ("qwen35", DELTA | {"delta_gates": "bfloat16"}),
    "qwen3moe": ("qwen3moe", EXPERTS),
    "qwen3moe, untied": ("qwen3moe", EXPERTS | {"tie_embeddings": False}),
    "qwen3moe, one expert": ("qwen3moe", {"num_experts": 1, "expert_width": 256, "experts_per_token": 1}),
    "qwen3moe, all experts": ("qwen3moe", EXPERTS | {"experts_per_token": 4}),
    "qwen3moe, scales of rows": ("qwen3moe", EXPERTS | ROW),
}  # fmt: skip

# What llama.cpp has no Gated DeltaNet for.
OTHER_DELTAS: dict[str, tuple[dict[str, Any], str]] = {
    "delta without attention": ({"layer_pattern": ("delta",)}, "layer_pattern=.*each n-th"),
    "attention first": (
        DELTA | {"layer_pattern": ("attention", "delta")},
        "layer_pattern=.*each n-th",
    ),
    "delta without gates": (DELTA | {"attention_gate": False}, "attention_gate=false"),
    "delta without norms of heads": (DELTA | {"qk_norm": False}, "qk_norm=false"),
    "delta with sub-norms": (DELTA | {"sub_norm": True}, "sub_norm=true"),
    "delta of other values": (DELTA | {"delta_value_dim": 64}, "delta_key_dim=128 and delta_"),
}
# What no architecture has a place for, with what must be said of it.
INEXPRESSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "streams": ({"num_streams": 2}, "num_streams=2: it has one residual stream"),
    "delta": ({"layer_pattern": ("delta",)}, "layer_pattern="),
    "loop": ({"loop_count": 2}, "loop_count=2: .*can be unrolled"),
    "gate": ({"attention_gate": True}, "attention_gate=true"),
    "rotation": ({"rotation_block": 128}, "rotation_block=128"),
    "scale of embeddings": ({"embedding_scale": 12.0}, "embedding_scale=12.0"),
    "scale of sub-layers": ({"residual_scale": 0.5}, "residual_scale=0.5"),
    "scale of logits": ({"logit_scale": 8.0}, "logit_scale=8.0"),
    "table of blocks": ({"table_format": "int8_32"}, 'table_format="int8_32"'),
    "head of 16 bits": (
        {"head_format": "bfloat16", "tie_embeddings": False},
        'head_format="bfloat16"',
    ),
    "scaling": ({"rope_type": "linear"}, 'rope_type="linear"'),
    "rotation of some features": ({"rope_dims": 16}, "rope_dims=16"),
    "magnitude": ({"rope_magnitude": 1.2}, "rope_magnitude=1.2"),
    "relu2": ({"activation": "relu2"}, 'activation="relu2"'),
    "relu2_glu": ({"activation": "relu2_glu"}, 'activation="relu2_glu"'),
    "experts without QK norm": (EXPERTS | {"qk_norm": False}, "qk_norm=false with experts"),
    "experts and sub norm": (EXPERTS | {"sub_norm": True}, "sub_norm=true with experts"),
    "experts and delta": (EXPERTS | {"layer_pattern": ("delta",)}, "layer_pattern=.* with experts"),
    "shared expert": (EXPERTS | {"shared_expert_width": 256}, "shared_expert_width=256"),
}
# What llama.cpp alone has no place for.
OF_LLAMA_CPP: dict[str, tuple[dict[str, Any], str]] = {
    "both norms": ({"sub_norm": True}, "qk_norm=true with sub_norm=true"),
    "bitnet, untied": (BITNET | {"tie_embeddings": False}, "tie_embeddings=false with sub_norm"),
    "qwen2, wide heads": ({"qk_norm": False, "head_dim": 128}, r"num_heads \* head_dim=512"),
    "layers": ({"num_layers": 513}, "num_layers=513: it runs at most 512"),
    "bitnet, wide heads": (BITNET | {"head_dim": 128}, r"num_heads \* head_dim=512"),
}

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)


def make(**options: Any) -> Bundle:
    """A model with random weights, no two norms of which have equal gains."""
    config = ModelConfig(**BASE | options)
    generator = np.random.default_rng(1)

    def vary(name: str, leaf: Stored) -> Stored:
        if isinstance(leaf, Dense) and "norm" in name:
            factors = generator.uniform(0.5, 1.5, leaf.values.shape).astype(np.float32)
            return Dense(values=leaf.values * factors)
        return leaf

    weights = map_leaves(vary, random_packed_weights(config, 1))
    return Bundle(
        name="some model",
        config=config,
        weights=weights,
        tokenizer=TOKENIZER,
        generation={},
        licence="MIT",
    )


def in_float(source: Bundle) -> Engine[Any, Any, Any]:
    """The model at work with activations that are not rounded to 8 bits, as llama.cpp computes with F16."""
    ops = UnroundedOps()
    return Engine(source.config, ops.prepare(source.weights), ops)


def stock_logits(path: Path) -> NDArray[np.float32]:
    with closing(LlamaCpp(path, context=64, threads=1)) as model:
        return model.logits(IDS)


def exact(config: ModelConfig) -> dict[str, Any]:
    """The default type of a file, or one with blocks that fit the model's."""
    if config.head_dim == 48:
        return {"outtype": "f16"}
    return {"outtype": "q2_0"} if config.weight_block == 128 else {}


@pytest.mark.parametrize(("architecture", "options"), EXPRESSIBLE.values(), ids=EXPRESSIBLE)
def test_a_stock_file_is_read_back_exactly(
    architecture: str, options: dict[str, Any], tmp_path: Path
) -> None:
    source = make(**options)

    written = write_gguf(tmp_path / "x.gguf", source, **exact(source.config))

    bundle = load(tmp_path / "x.gguf")
    config, weights, tokenizer = bundle.config, bundle.weights, bundle.tokenizer
    assert written == architecture
    assert read_gguf(tmp_path / "x.gguf").metadata["general.architecture"] == architecture
    assert config == source.config
    assert tokenizer.fingerprint == TOKENIZER.fingerprint
    assert arrays(weights) == arrays(source.weights)
    assert load(tmp_path / "x.gguf").golden == record(source)


def arrays(weights: Weights[Stored]) -> dict[str, Any]:
    return {
        f"{name}.{field}": (value.dtype, value.shape, value.tobytes())
        if isinstance(value, np.ndarray)
        else value
        for name, leaf in named_leaves(weights)
        for field, value in vars(leaf).items()
    }


@on_linux_x86
@pytest.mark.parametrize("options", [case[1] for case in EXPRESSIBLE.values()], ids=EXPRESSIBLE)
def test_llama_cpp_computes_the_model_where_neither_rounds_activations(
    options: dict[str, Any], tmp_path: Path
) -> None:
    source = make(**options)
    write_gguf(tmp_path / "x.gguf", source, outtype="f16", tables="f16")
    rounded = with_float16_tables(source)
    engine = in_float(rounded)

    with closing(LlamaCpp(tmp_path / "x.gguf", context=64, threads=1)) as model:
        report = compare(engine.logits(IDS), model.logits(IDS), tolerance=3e-3)
        tokens = model.greedy(IDS, num_tokens=5)

    # Weights and activations that meet them are float16 there, and so are keys and values.
    assert report.ok, report
    assert tokens == greedy(engine, IDS, num_tokens=5)


@pytest.fixture(
    scope="module",
    params=[{}, {"table_format": "dense"}, {"qk_norm": False} | ROW, BITNET, EXPERTS],
    ids=["qwen3", "dense tables", "qwen2", "bitnet", "qwen3moe"],
)
def model_and_logits(request: pytest.FixtureRequest) -> tuple[Bundle, NDArray[np.float32]]:
    source = make(**request.param)
    return source, in_float(source).logits(IDS)


@on_linux_x86
@pytest.mark.parametrize("outtype", ["tq2_0", "tq1_0", "q2_0", "f16"])
@pytest.mark.parametrize("tables", [None, "f16"])
def test_llama_cpp_computes_every_type_within_its_rounding_of_activations(
    model_and_logits: tuple[Bundle, NDArray[np.float32]], tables: Any, outtype: Any, tmp_path: Path
) -> None:
    source, expected = model_and_logits

    write_gguf(tmp_path / "x.gguf", source, outtype=outtype, tables=tables)

    # The median, because an expert chosen otherwise changes a token by much more.
    report = compare(expected, stock_logits(tmp_path / "x.gguf"))
    assert report.median_ratio < 3e-2, report


@on_linux_x86
def test_llama_cpp_computes_an_unrolled_loop(tmp_path: Path) -> None:
    looped = make(loop_count=3, loop_prelude=1, loop_coda=1, num_layers=3)
    engine = in_float(looped)

    written = write_gguf(tmp_path / "x.gguf", unroll(looped), outtype="f16")

    report = compare(engine.logits(IDS), stock_logits(tmp_path / "x.gguf"), tolerance=1e-2)
    assert written == "qwen3"
    assert report.ok, report


@on_linux_x86
def test_llama_cpp_runs_a_model_without_the_heads_that_only_training_uses(tmp_path: Path) -> None:
    source = make(num_ahead=1)
    engine = in_float(source)

    written = write_gguf(tmp_path / "x.gguf", source, outtype="f16", runtime="llama.cpp")

    report = compare(engine.logits(IDS), stock_logits(tmp_path / "x.gguf"), tolerance=1e-2)
    assert written == "qwen3"
    assert report.ok, report
    assert load(tmp_path / "x.gguf").golden == record(without_ahead(source))


def test_nothing_is_left_out_unasked(tmp_path: Path) -> None:
    source = make(num_ahead=1)

    written = write_gguf(tmp_path / "x.gguf", source)

    assert written == "nanochat"
    assert load(tmp_path / "x.gguf").config == source.config


@on_linux_x86
def test_llama_cpp_refuses_the_architecture_that_it_does_not_know(tmp_path: Path) -> None:
    assert write_gguf(tmp_path / "x.gguf", make(), runtime="nanochat") == "nanochat"

    with pytest.raises(FormatError, match="unknown model architecture: 'nanochat'"):
        LlamaCpp(tmp_path / "x.gguf", context=64)


@pytest.mark.parametrize(("options", "reason"), OTHER_DELTAS.values(), ids=OTHER_DELTAS)
def test_another_gated_deltanet_than_llama_cpps_is_refused(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"stock llama.cpp cannot run this model: .*{reason}"):
        write_gguf(tmp_path / "x.gguf", make(**options), runtime="llama.cpp")


@pytest.mark.parametrize(("options", "reason"), INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
@pytest.mark.parametrize("runtime", ["llama.cpp", "mlx-lm", "transformers"])
def test_an_option_without_a_place_is_refused_with_its_reason(
    runtime: Runtime, options: dict[str, Any], reason: str
) -> None:
    config = ModelConfig(**BASE | options)

    with pytest.raises(ConfigError, match=f"stock {runtime} cannot run this model: .*{reason}"):
        stock_architecture(config, runtime)


@pytest.mark.parametrize(("options", "reason"), OF_LLAMA_CPP.values(), ids=OF_LLAMA_CPP)
def test_an_option_without_a_place_in_llama_cpp_is_refused_with_its_reason(
    options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        stock_architecture(ModelConfig(**BASE | options), "llama.cpp")


@pytest.mark.parametrize("runtime", ["mlx-lm", "transformers"])
def test_sub_norms_have_a_place_in_llama_cpp_alone(runtime: Runtime) -> None:
    (reason,) = obstacles(ModelConfig(**BASE | BITNET), runtime)

    # transformers itself has a BitNet with such norms, which is only read here.
    assert re.match(
        "sub_norm=true: models are written for it as qwen3 and llama and qwen3_?moe.*, which have no norms",
        reason,
    )


def test_every_reason_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    source = make(num_streams=2, attention_gate=True, loop_count=2, activation="relu2")

    with pytest.raises(ConfigError) as caught:
        write_gguf(tmp_path / "x.gguf", source, runtime="llama.cpp")

    words = ("num_streams=2", "attention_gate=true", "loop_count=2", 'activation="relu2"')
    assert all(word in str(caught.value) for word in words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "choices", "message"),
    [
        ({"weight_block": 128}, {}, "a scale for every 128 .*pass outtype=q2_0 or f16"),
        ({"weight_block": 128}, {"outtype": "tq1_0"}, "TQ1_0 has one .*pass outtype=q2_0 or f16"),
        (ROW | {"width": 320, "num_heads": 5, "num_kv_heads": 1}, {}, "320 columns.*=q2_0 or f16"),
        (
            ROW | {"width": 48, "head_dim": 12, "rope_theta": 10.0},
            {"outtype": "q2_0"},
            "embedding has 48 columns: Q8_0 packs 32 at a time; pass tables=f16",
        ),
        (
            ROW | {"width": 48, "head_dim": 12, "rope_theta": 10.0},
            {"outtype": "q2_0", "tables": "f16"},
            "48 columns: Q2_0 packs 64 at a time; pass outtype=f16",
        ),
        ({"table_format": "dense"}, {"tables": "q8_0"}, "Q8_0 would round"),
    ],
)
def test_a_type_that_cannot_hold_the_model_is_refused_with_those_that_can(
    options: dict[str, Any], choices: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_gguf(tmp_path / "x.gguf", make(**options), **choices)

    assert not list(tmp_path.iterdir())


def test_a_runtime_that_runs_no_gguf_file_is_refused() -> None:
    with pytest.raises(InputError, match=r"runtime='mlx-lm' .*auto, llama\.cpp, nanochat"):
        gguf_architecture(ModelConfig(**BASE), runtime="mlx-lm")


@pytest.fixture(scope="module")
def stock_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stock") / "x.gguf"
    write_gguf(path, make(num_experts=2, expert_width=256, tie_embeddings=False))
    return path


def test_tensors_have_the_names_types_and_shapes_that_llama_cpp_looks_for(stock_file: Path) -> None:
    tensors = read_gguf(stock_file).tensors

    of_a_layer = {
        name.removeprefix("blk.1."): (tensor.kind.name, tensor.shape)
        for name, tensor in tensors.items()
        if name.startswith("blk.1.")
    }
    others = {name: tensor.kind.name for name, tensor in tensors.items() if name[:4] != "blk."}
    assert of_a_layer == {
        "attn_norm.weight": ("F32", (256,)),
        "attn_q.weight": ("TQ2_0", (256, 256)),
        "attn_k.weight": ("TQ2_0", (128, 256)),
        "attn_v.weight": ("TQ2_0", (128, 256)),
        "attn_output.weight": ("TQ2_0", (256, 256)),
        "attn_q_norm.weight": ("F32", (64,)),
        "attn_k_norm.weight": ("F32", (64,)),
        "ffn_norm.weight": ("F32", (256,)),
        "ffn_gate_inp.weight": ("F32", (2, 256)),
        "ffn_gate_exps.weight": ("TQ2_0", (2, 256, 256)),
        "ffn_up_exps.weight": ("TQ2_0", (2, 256, 256)),
        "ffn_down_exps.weight": ("TQ2_0", (2, 256, 256)),
    }
    assert others == {
        "token_embd.weight": "Q8_0",
        "output_norm.weight": "F32",
        "output.weight": "Q8_0",
    }


def test_metadata_are_where_llama_cpp_looks_for_them(stock_file: Path) -> None:
    metadata = read_gguf(stock_file).metadata

    expected = {
        "general.name": "some model",
        "general.license": "MIT",
        "general.file_type": 37,
        "general.quantization_version": 2,
        "qwen3moe.context_length": 128,
        "qwen3moe.embedding_length": 256,
        "qwen3moe.block_count": 2,
        "qwen3moe.attention.head_count": 4,
        "qwen3moe.attention.head_count_kv": 2,
        "qwen3moe.attention.key_length": 64,
        "qwen3moe.attention.value_length": 64,
        "qwen3moe.rope.dimension_count": 64,
        "qwen3moe.rope.freq_base": 10_000.0,
        "qwen3moe.vocab_size": 300,
        "qwen3moe.expert_count": 2,
        "qwen3moe.expert_used_count": 2,
        "qwen3moe.expert_feed_forward_length": 256,
        "qwen3moe.feed_forward_length": 256,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
    }
    assert {key: metadata.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("outtype", "file_type", "kind"),
    [("tq2_0", 37, 35), ("tq1_0", 36, 34), ("q2_0", 41, 42), ("f16", 1, 1)],
)
def test_a_file_says_which_type_it_has(
    outtype: Any, file_type: int, kind: int, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "x.gguf", make(), outtype=outtype)

    file = read_gguf(tmp_path / "x.gguf")
    assert file.metadata["general.file_type"] == file_type
    assert file.tensors["blk.0.attn_q.weight"].kind == TYPES[kind]


def test_a_stock_name_that_is_not_the_configuration_s_is_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", make())
    data = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "x.gguf").write_bytes(data.replace(b"qwen3", b"qwen2"))

    with pytest.raises(FormatError, match="architecture is 'qwen2', which is not that of its conf"):
        load(tmp_path / "x.gguf")


def test_float32_leaves_are_views_of_the_file(stock_file: Path) -> None:
    weights = load(stock_file).weights

    dense = [leaf.values for _, leaf in named_leaves(weights) if isinstance(leaf, Dense)]

    assert len(dense) == 11
    assert not any(values.flags.owndata or values.flags.writeable for values in dense)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_stock_files_are_refused_or_legal(
    data: st.DataObject, stock_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = stock_file.read_bytes()
    position = data.draw(st.integers(0, 30_000) | st.integers(0, len(content) - 1))
    damaged = content[:position]
    if data.draw(st.booleans()):
        damaged += data.draw(st.binary(max_size=3)) + content[position + 1 :]
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)

    try:
        weights = load(path).weights
    except NanochatError:
        return

    for name, leaf in named_leaves(weights):
        require_legal(name, leaf)


def test_progress_counts_the_tensors(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    write_gguf(tmp_path / "x.gguf", make(), progress=lambda *counts: seen.append(counts))

    total = len(read_gguf(tmp_path / "x.gguf").tensors)
    assert seen == [(number, total) for number in range(1, total + 1)]


def test_the_golden_record_is_that_of_the_model_in_the_file(tmp_path: Path) -> None:
    source = make()

    write_gguf(tmp_path / "x.gguf", source, tables="f16")

    assert load(tmp_path / "x.gguf").golden == record(with_float16_tables(source))
    assert load(tmp_path / "x.gguf").config == replace(source.config, table_format="dense")
