"""This file holds the ONNX exporter: the model's own `forward`, run once on the values of a graph, writes the file.

Inputs and outputs are named as onnxruntime-genai names them. B sequences, T tokens, P tokens of the calls before:

* in: ``input_ids`` int64 (B, T); ``attention_mask`` int64 (B, P + T), 0 for padding, which must stand on the left;
  ``past_key_values.N.key`` and ``.value``, (B, key heads, P, head_dim), for each attention layer, and for each Gated
  DeltaNet layer ``past.N.conv_q``, ``.conv_k``, ``.conv_v``, (B, features, taps - 1), and ``past.N.recurrent``,
  (B, heads, key_dim, value_dim), which are zeros at first.
* out: ``logits`` float32 (B, T, vocabulary), and a ``present…`` for every ``past…``.

Run it with ONNX Runtime 1.28 or newer: earlier ones have no integer kernel for 2-bit weights and fall back to float.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from nanochat import __version__
from nanochat.backends.reference import ReferenceOps
from nanochat.config import ModelConfig, config_to_dict
from nanochat.errors import ConfigError, InputError
from nanochat.export.onnx_graph import Graph
from nanochat.export.onnx_leaves import BLOCK
from nanochat.export.onnx_ops import OnnxOps
from nanochat.export.onnx_session import OnnxSession
from nanochat.export.verify import Report, compare, least_equal
from nanochat.files import atomic_directory
from nanochat.model import forward, slots
from nanochat.weights import Stored, Weights

__all__ = ["export_onnx", "verify_onnx"]

# A protocol buffer cannot be longer than 2 GiB; the graph without its tensors fits in what this leaves.
_LARGEST_FILE = 2**31 - 2**24


def export_onnx(
    config: ModelConfig,
    weights: Weights[Stored],
    path: Path,
    *,
    name: str = "nanochat-ternary",
    exit_threshold: float | None = None,
) -> None:
    """Write a model for ONNX Runtime, in one file, or with its tensors in ``<path>.data`` if they exceed 2 GiB.

    Parameters
    ----------
    weights : tree of stored leaves
        Latent leaves are rounded first.
    name : str
        The model's name, kept in the file.
    exit_threshold : float, optional
        Replaces the configuration's. A looped model needs 1: a graph runs all its steps for every token.

    Raises
    ------
    ConfigError
        If the graph could not compute what the configuration asks for.
    SaveError
        If the file cannot be written; what stood there before is untouched.
    """
    if exit_threshold is not None:
        config = dataclasses.replace(config, exit_threshold=exit_threshold)
    if config.activation_block != BLOCK:
        raise ConfigError(
            f"activation_block={config.activation_block!r}: ONNX Runtime rounds activations in blocks of {BLOCK} only, "
            f"and would compute something else, slowly; train with activation_block={BLOCK}"
        )
    if config.exit_threshold < 1.0:
        raise ConfigError(
            f"exit_threshold={config.exit_threshold} lets each token choose its number of loop steps, but the graph "
            f"has a fixed number: pass exit_threshold=1 to export all {config.loop_count} steps for every token"
        )
    graph = _graph(config, weights)
    metadata = {"name": name, "config": json.dumps(config_to_dict(config))}
    model = graph.model(name, version=__version__, metadata=metadata)
    large = graph.num_bytes > _LARGEST_FILE
    with atomic_directory(path.parent) as folder:
        file = folder / path.name
        onnx.save_model(
            model,
            file,
            save_as_external_data=large,
            location=f"{path.name}.data" if large else None,
        )
        onnx.checker.check_model(file)


def verify_onnx(
    path: Path,
    config: ModelConfig,
    weights: Weights[Stored],
    prompt_ids: NDArray[np.int64],
    *,
    tolerance: float = 3e-2,
) -> Report:
    """Run the file in ONNX Runtime and measure its logits against the reference backend's.

    The prompt is run as a whole, and again in halves: the first at once, the second token by token. Its pairs of
    neighbours are then run as sequences of their own, in which few roundings can flip: a fair share of their logits
    must be equal to 1e-5, which a graph that computes something else does not reach.

    Parameters
    ----------
    prompt_ids : int64 array, shape (B, T)
        At least 2 tokens.
    tolerance : float
        RMS ratio that passes. A float32 difference of 1e-7 can flip one rounding of an activation to int8, which
        changes a token's logits by up to 1e-2.

    Raises
    ------
    FormatError
        If ONNX Runtime cannot load the file.
    InputError
        If the prompt has fewer than 2 tokens.
    """
    if prompt_ids.ndim != 2 or prompt_ids.shape[1] < 2:
        raise InputError(
            f"a prompt of shape {prompt_ids.shape}: pass (sequences, tokens) with at least 2 tokens"
        )
    config = dataclasses.replace(config, exit_threshold=1.0)
    ops = ReferenceOps()
    prepared = ops.prepare(weights)
    expected = forward(ops.tokens(prompt_ids), prepared, config, ops)
    batch, length = prompt_ids.shape
    whole = OnnxSession(path, batch=batch).run(prompt_ids)
    session = OnnxSession(path, batch=batch)
    chunks = np.split(prompt_ids, range(length // 2, length), axis=1)
    steps = np.concatenate([session.run(chunk) for chunk in chunks], axis=1)
    report = compare(np.stack([expected, expected]), np.stack([whole, steps]), tolerance=tolerance)
    pairs = np.unique(
        np.stack([prompt_ids[:, :-1], prompt_ids[:, 1:]], axis=2).reshape(-1, 2), axis=0
    )
    alone = forward(ops.tokens(pairs), prepared, config, ops)
    # The second token of each: where a token stands matters from there on.
    short = compare(alone[:, 1], OnnxSession(path, batch=len(pairs)).run(pairs)[:, 1])
    return dataclasses.replace(
        report, share_equal=short.share_equal, least_equal=least_equal(config)
    )


def _graph(config: ModelConfig, weights: Weights[Stored]) -> Graph:
    ops = OnnxOps()
    # Sizes of sequences and batches are free in a graph.
    state = ops.new_state(slots(config), batch=0, capacity=0)
    logits = forward(ops.input_ids, ops.prepare(weights), config, ops, state)
    ops.graph.output(logits, "logits")
    state.declare_outputs()
    return ops.graph
