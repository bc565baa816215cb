"""Rotations and scales that other people's GGUF files ask for are those of llama.cpp."""

import platform
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.errors import ConfigError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.generation.engine import Engine
from nanochat.proof.parity import UnroundedOps
from tests.export.foreign_ggufs import (
    HEAD_DIM,
    Case,
    Tensor,
    sentencepiece_vocabulary,
    write,
)
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.export.stock_models import rms_ratio

on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)
IDS = np.random.default_rng(0).integers(0, 300, 60).tolist()
PAIRS = HEAD_DIM // 2


def factors(first: float, last: float) -> Tensor:
    values = np.linspace(first, last, PAIRS, dtype=np.float32)
    return (PAIRS,), 0, values.view(np.uint8)


YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
}
MINICPM = {"embedding_scale": 12.0, "residual_scale": 0.7, "logit_scale": 1.5}
LONG = {
    "rope_factors_short.weight": factors(1, 1.5),
    "rope_factors_long.weight": factors(1, 6),
}
# Architecture, keys and tensors.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Tensor]]] = {
    "yarn": ("qwen3", YARN, {}),
    "yarn with a factor of attention": (
        "qwen2",
        {**YARN, "rope.scaling.attn_factor": 0.8},
        {},
    ),
    "linear": (
        "qwen3",
        {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        {},
    ),
    "linear by its older name": ("llama", {"rope.scale_linear": 4.0}, {}),
    "factors": ("llama", {}, {"rope_freqs.weight": factors(1, 8)}),
    "minicpm": ("minicpm", MINICPM, {}),
    "minicpm, long": (
        "minicpm",
        {
            **MINICPM,
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": 1.2,
        },
        LONG,
    ),
    "minicpm, short": (
        "minicpm",
        # llama.cpp takes memory for 256 tokens at least, and counts those.
        {**MINICPM, "rope.scaling.type": "longrope", "context_length": 512},
        LONG,
    ),
}


def written(path: Path, name: str, *, kind: str = "F32") -> Path:
    architecture, keys, tensors = CASES[name]
    changes = {f"{architecture}.{key}": value for key, value in keys.items()}
    if architecture == "minicpm":
        changes |= sentencepiece_vocabulary()
    case = Case(architecture=architecture, kind=kind, table="F32", tied=architecture != "llama")
    return write(path, case, changes=changes, changed_tensors=tensors)


def logits(path: Path) -> NDArray[np.float32]:
    """Ours, with activations that are not rounded."""
    config, weights, _ = load_foreign_gguf(path, read_gguf(path))
    ops = UnroundedOps()
    return Engine(config, ops.prepare(weights), ops).logits(IDS)


@on_linux_x86
@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_llama_cpp(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "x.gguf", name)
    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        expected = theirs.logits(IDS)

    assert rms_ratio(logits(path), expected) < 1e-3
    assert ("factors_long.weight is used for texts of any" in caplog.text) == name.endswith("long")


@pytest.mark.parametrize("name", [name for name in CASES if name != "minicpm, short"])
def test_what_is_left_out_would_show(name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", name)
    config, weights, _ = load_foreign_gguf(path, read_gguf(path))
    plain: dict[str, Any] = {
        "rope_type": "ntk",
        "rope_dims": 0,
        "rope_factors": (),
        "rope_magnitude": 1.0,
        "rope_scale": 1.0,
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "logit_scale": 1.0,
    }
    ops = UnroundedOps()
    prepared = ops.prepare(weights)

    without = Engine(replace(config, **plain), prepared, ops).logits(IDS)

    assert rms_ratio(without, Engine(config, prepared, ops).logits(IDS)) > 0.02


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("minicpm", {"minicpm.logit_scale": None}, "minicpm.logit_scale is None"),
        ("yarn", {"qwen3.rope.scaling.factor": 0.5}, "rope_scale=0.5: must lie between"),
        ("yarn", {"qwen3.rope.freq_base": 1.0}, "all pairs turn alike"),
        ("linear", {"qwen3.rope.dimension_count": 128}, "rope_dims=128 is more than head_dim=64"),
    ],
)
def test_what_is_no_rotation_or_scale_is_refused(
    name: str, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    architecture, own, tensors = CASES[name]
    changes = {f"{architecture}.{key}": value for key, value in own.items()}
    if architecture == "minicpm":
        changes |= sentencepiece_vocabulary()
    case = Case(architecture=architecture, table="F32")
    path = write(tmp_path / "x.gguf", case, changes={**changes, **keys}, changed_tensors=tensors)

    with pytest.raises(ConfigError, match=message):
        load_foreign_gguf(path, read_gguf(path))
