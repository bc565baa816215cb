"""This file holds the ONNX exporter: the model's own `forward`, run once on the values of a graph, writes the file.

Inputs and outputs are named as onnxruntime-genai names them. B sequences, T tokens, P tokens of the calls before:

* in: ``input_ids`` int64 (B, T); ``attention_mask`` int64 (B, P + T), 0 for padding, which must stand on the right of
  each call's tokens; ``past_key_values.N.key`` and ``.value``, (B, key heads, P, head_dim), for each attention layer,
  and for each Gated DeltaNet layer ``past.N.conv``, (B, features, taps - 1), and ``past.N.recurrent``, (B, heads,
  key_dim, value_dim), which are zeros at first.
* out: ``logits`` float32 (B, T, vocabulary), and a ``present…`` for every ``past…``.

There are two targets. *ort* is for ONNX Runtime 1.32 or newer, and fast: see `nanochat.export.onnx.ort`. *standard* has
no operator outside the ONNX standard, opset 25: see `nanochat.export.onnx.standard`, also for how to run it fast.

The file holds the whole model: tensors by the dotted paths of their leaves, and as metadata the configuration, the
golden record, and the few leaves that the graph holds only what follows from, such as static mHC coefficients.
"""

import base64
import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from nanochat import __version__
from nanochat.bundle import Bundle
from nanochat.config import TABLE_BLOCKS, ModelConfig, config_to_dict
from nanochat.errors import ConfigError, InputError
from nanochat.export.format import Progress
from nanochat.export.onnx.digest import seal
from nanochat.export.onnx.graph import Graph
from nanochat.export.onnx.leaves import BLOCK, members
from nanochat.export.onnx.ort import OrtOps
from nanochat.export.onnx.standard import StandardOps
from nanochat.export.transform import without_ahead
from nanochat.files import atomic_directory
from nanochat.model import forward
from nanochat.proof.golden import with_golden
from nanochat.shapes import layer_kinds
from nanochat.slots import slots
from nanochat.weights import Dense, Stored, Weights, named_leaves

__all__ = ["Target", "export_onnx", "onnx_model", "require_possible", "save_graph"]

Target = Literal["ort", "standard"]

_TARGETS: dict[str, type[OrtOps] | type[StandardOps]] = {"ort": OrtOps, "standard": StandardOps}
# Of features of a head that is rotated in `GroupQueryAttention`, in ONNX Runtime 1.32.
_HEADS = 16
# A protocol buffer cannot be longer than 2 GiB; the graph without its tensors fits in what this leaves.
_LARGEST_FILE = 2**31 - 2**24


def export_onnx(
    bundle: Bundle, path: Path, *, target: Target = "ort", progress: Progress | None = None
) -> None:
    """Write a model for ONNX runtimes, in one file, or with its tensors in ``<path>.data`` if they exceed 2 GiB.

    Heads that predict further tokens are left out: only training uses them. A golden record is made if the bundle has
    none.
    """
    config = bundle.config
    looped = config.num_layers - config.loop_prelude - config.loop_coda
    # A step for each layer as they run, and one for the file.
    steps = config.num_layers + looped * (config.loop_count - 1) + 1

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, steps)

    bundle = without_ahead(bundle)
    bundle = bundle if bundle.golden else with_golden(bundle)
    save_graph(onnx_model(bundle, target=target, tell=tell), path, full_check=target == "standard")
    tell(steps)


def save_graph(model: onnx.ModelProto, path: Path, *, full_check: bool = False) -> None:
    """Write a graph, complete or not at all; see `export_onnx`."""
    large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > _LARGEST_FILE
    with atomic_directory(path.parent) as folder:
        file = folder / path.name
        onnx.save_model(
            model,
            file,
            save_as_external_data=large,
            location=f"{path.name}.data" if large else None,
        )
        if large:
            # The library makes it private to its owner.
            shutil.copymode(file, folder / f"{path.name}.data")
        onnx.checker.check_model(file, full_check=full_check)


def onnx_model(
    bundle: Bundle, *, target: Target, tell: Callable[[int], None] | None = None
) -> onnx.ModelProto:
    """The content of the file of `export_onnx`, with the golden record of the bundle, if it has one.

    `tell` is called with the layers done.
    """
    require_possible(bundle.config, target)
    bundle = without_ahead(bundle)
    graph = _graph(bundle, target, tell)
    metadata = {
        "name": bundle.name,
        "target": target,
        "config": json.dumps(config_to_dict(bundle.config)),
        "leaves": json.dumps(_other_leaves(bundle.weights, graph)),
    }
    model = graph.model(bundle.name, version=__version__, metadata=metadata)
    if bundle.golden is not None:
        seal(model, bundle.golden)
    return model


def require_possible(config: ModelConfig, target: str) -> None:
    """Refuse a model that ONNX Runtime cannot run, or would compute otherwise."""
    if target not in _TARGETS:
        raise InputError(f"target={target!r}: choose one of {', '.join(_TARGETS)}")
    if config.activation_block != BLOCK:
        raise ConfigError(
            f"activation_block={config.activation_block!r}: ONNX Runtime rounds activations in blocks of {BLOCK} only, "
            "and would compute something else, slowly; export it in another format, or, if it is yours to train, with "
            f"activation_block={BLOCK}"
        )
    for name in ("table_format", "head_format"):
        form = getattr(config, name)
        if form in TABLE_BLOCKS:
            raise ConfigError(
                f'{name}="{form}": ONNX Runtime has 8-bit tables of one scale for {BLOCK} columns, and none for '
                f"{TABLE_BLOCKS[form]}; export it in another format, or with tables of its Hugging Face form"
            )
    if config.exit_threshold < 1.0:
        raise ConfigError(
            f"exit_threshold={config.exit_threshold} lets each token choose its number of loop steps, but the graph "
            f"has a fixed number: pass exit_threshold=1 to export all {config.loop_count} steps for every token"
        )
    if target == "ort" and "attention" in layer_kinds(config) and config.head_dim % _HEADS:
        raise ConfigError(
            f"head_dim={config.head_dim}: ONNX Runtime's fast attention takes multiples of {_HEADS} only; export the "
            "target standard (nanochat export --format onnx --target standard), run the model on another backend, or "
            f"train with a multiple of {_HEADS}"
        )


def _graph(bundle: Bundle, target: str, tell: Callable[[int], None] | None) -> Graph:
    config, ops = bundle.config, _TARGETS[target]()
    state = ops.new_state(slots(config), rows=1, capacity=config.context_length)
    done = count(1)
    logits = forward(
        ops.input_ids,
        ops.prepare(bundle.weights),
        config,
        ops,
        state,
        observe=None if tell is None else lambda _: tell(next(done)),
    )
    ops.graph.output(logits, "logits")
    state.declare_outputs()
    return ops.graph


def _other_leaves(weights: Weights[Stored], graph: Graph) -> dict[str, str]:
    """The numbers, in base 64, of the leaves that are no tensors of the graph."""
    written = {
        member for name in graph.constant_names for member in members(name.removesuffix(".codes"))
    }
    others: dict[str, str] = {}
    for name, leaf in named_leaves(weights):
        if name not in written:
            assert isinstance(leaf, Dense), name
            assert leaf.values.dtype == np.float32, name
            others[name] = base64.b64encode(leaf.values.tobytes()).decode()
    return others
