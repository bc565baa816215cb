"""This file holds the exports that `python -m bench parity --exports` makes: a format, a model, and its runtimes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nanochat.bundle import Bundle, default_generation
from nanochat.config import ModelConfig
from nanochat.export.formats import format_named, load
from nanochat.export.transform import unroll
from nanochat.init import freeze
from nanochat.proof.parity import Artefact
from nanochat.text.tokenizer import Tokenizer
from nanochat.zoo.hub import resolve
from tests.parity.random_models import random_weights

__all__ = ["CASES", "FEW", "ExportCase", "source"]

_TINY = "nanochat-tiny"

# Options of a model with random weights, beside a plain one. Its head is its own: a tied one of random weights finds
# the token that it has just read most probable, whatever the layers compute.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "no QK-norm": {"qk_norm": False},
    # The only architecture with sub-norms that other runtimes have has no head of its own.
    "sub-norms": {"qk_norm": False, "sub_norm": True, "tie_embeddings": True},
    "experts": {"num_experts": 4, "expert_width": 256, "ffn_width": 0},
    "tied head": {"tie_embeddings": True},
    "one key head": {"num_kv_heads": 1},
    "NTK scale": {"rope_scale": 4.0},
    "a scale per row": {"weight_block": "row"},
    "a scale per 128": {"weight_block": 128},
    "dense tables": {"table_format": "dense"},
    "squared ReLU": {"activation": "relu2"},
    "gated attention": {"attention_gate": True},
    "shared expert": {
        "num_experts": 4,
        "expert_width": 256,
        "ffn_width": 0,
        "shared_expert_width": 256,
    },
    "DeltaNet": {
        "layer_pattern": ("delta", "attention"),
        "delta_heads": 2,
        "delta_key_dim": 64,
        "delta_value_dim": 128,
    },
    "LoopLM": {"num_layers": 3, "loop_count": 2, "loop_prelude": 1, "loop_coda": 1},
    "mHC dynamic": {"num_streams": 4, "coefficients": "dynamic"},
    "mHC sinkhorn": {"num_streams": 2, "mixer": "sinkhorn"},
}


@dataclass(frozen=True, kw_only=True)
class ExportCase:
    """One export.

    Parameters
    ----------
    kind : str
        A format of `nanochat.export.formats.FORMATS`.
    options : object
        What is chosen of it.
    label : str
        Format and choices, for the table.
    model : str
        A name for `source`.
    runtimes : mapping
        What runs it, besides the runtime of the format itself: each opens the path.
    """

    kind: str
    options: object
    label: str
    model: str
    runtimes: Mapping[str, Callable[[Path], Artefact]]


@cache
def source(model: str) -> Bundle:
    """A model of the catalog, or one of random weights with an option, unrolled if it says so."""
    if model.startswith("nanochat-"):
        return load(resolve(model), name=model, licence="MIT")
    option, _, unrolled = model.partition(", ")
    tokenizer = Tokenizer.load(resolve(_TINY))
    config = _config(_OPTIONS[option])
    made = Bundle(
        name=option,
        config=config,
        weights=freeze(random_weights(config)),
        tokenizer=tokenizer,
        generation=default_generation(tokenizer),
        licence="MIT",
    )
    return unroll(made) if unrolled else made


def _config(options: Mapping[str, Any]) -> ModelConfig:
    simplest: dict[str, Any] = {
        "vocab_size": 4096,
        "width": 256,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_width": 256,
        "context_length": 512,
        "num_streams": 1,
        "mixer_bias": -1.0,
        "tie_embeddings": False,
    }
    return ModelConfig(**simplest | dict(options))


def _genai(path: Path) -> Artefact:
    from bench.peers.genai import GenaiModel

    return GenaiModel(path)


def _cases() -> list[ExportCase]:
    cases: list[ExportCase] = []

    def add(kind: str, label: str, *models: str, genai: bool = False, **chosen: Any) -> None:
        cases.extend(
            ExportCase(
                kind=kind,
                options=format_named(kind).choose(**chosen),
                label=label,
                model=model,
                runtimes={"onnxruntime-genai": _genai} if genai else {},
            )
            for model in models
        )

    stock = ("plain", "no QK-norm", "sub-norms", "experts", "tied head", "one key head")
    for outtype in ("tq2_0", "tq1_0", "q2_0", "f16"):
        models = (*stock, "NTK scale", "a scale per row", "dense tables", "LoopLM, unrolled")
        few = models if outtype == "tq2_0" else ("plain",)
        label = f"GGUF {outtype}"
        add("gguf", label, *few, outtype=outtype, runtime="llama.cpp")
        add("gguf", label, _TINY, outtype=outtype, runtime="nanochat")
    add("gguf", "GGUF q2_0", "a scale per 128", outtype="q2_0", runtime="llama.cpp")
    add("gguf", "GGUF tq2_0, f16 tables", "plain", tables="f16", runtime="llama.cpp")
    add("gguf", "GGUF tq2_0", "DeltaNet", "LoopLM", "mHC dynamic", runtime="nanochat")
    add("onnx", "ONNX", _TINY, "plain", genai=True)
    add("onnx", "ONNX", *(name for name in _OPTIONS if name != "plain"))
    add("onnx", "ONNX standard", _TINY, "plain", "experts", "DeltaNet", "LoopLM", target="standard")
    add("web", "web", _TINY, "plain")
    add("mlx", "MLX", "plain", "no QK-norm", "experts", "a scale per row", runtime="mlx-lm")
    add("mlx", "MLX", _TINY, runtime="nanochat")
    add("hf", "HF", "plain", "no QK-norm", "experts", runtime="transformers")
    add("hf", "HF", _TINY, runtime="nanochat")
    return cases


CASES = tuple(_cases())
# One of each format.
FEW = tuple(
    case
    for case in CASES
    if (case.label, case.model)
    in {
        ("GGUF tq2_0", "plain"),
        ("GGUF tq2_0", _TINY),
        ("ONNX", _TINY),
        ("ONNX standard", "plain"),
        ("web", _TINY),
        ("MLX", "plain"),
        ("HF", "plain"),
    }
)
