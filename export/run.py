"""This file holds the start of a model: its operations on a backend, or its graph in a runtime of graphs."""

import tempfile
from pathlib import Path
from typing import Any

from nanochat import backends
from nanochat.bundle import Bundle
from nanochat.errors import BackendError
from nanochat.export.layouts import GRAPH
from nanochat.generation.engine import Engine, Runner
from nanochat.memory import require_room
from nanochat.ops import Storage

__all__ = ["choose_backend", "start"]


def choose_backend(bundle: Bundle, name: str = "auto") -> tuple[str, str]:
    """The backend that runs a model, and the reason, as `nanochat.backends.choose` gives them.

    But where nothing is named, a graph is run as it is, by a backend of graphs. Any other runs the weights in it.
    """
    if bundle.graph is not None and backends.wanted(name) == "auto":
        chosen, _ = backends.choose(backends.graphs()[0])
        return chosen, "the model is a graph"
    return backends.choose(name)


def start(
    bundle: Bundle,
    backend: str,
    *,
    name: str | None = None,
    kv_cache: Storage = "float32",
    num_threads: int | None = None,
) -> Runner[Any]:
    """A model at work on a backend that can run here, if there is enough memory for it; see `nanochat.lm.Model`.

    A runtime of graphs runs the model's own graph, or one that is written for it and forgotten. In messages the model
    has `name`, by default the bundle's.
    """
    name, config = name or bundle.name, bundle.config
    others = [other for other in backends.names() if backends.unavailable(other) is None]
    if backend in backends.graphs():
        require_room(name, config, backend, others=others, is_graph=bundle.graph is not None)
        return _start_graph(bundle, kv_cache=kv_cache, num_threads=num_threads)
    ops = backends.get(backend, num_threads=num_threads)
    require_room(name, config, backend, kv_cache=kv_cache, free=ops.free_bytes, others=others)
    return Engine(config, ops.prepare(bundle.weights), ops, kv_cache=kv_cache)


def _start_graph(bundle: Bundle, *, kv_cache: Storage, num_threads: int | None) -> Runner[Any]:
    # Late: both need packages that other backends do not.
    from nanochat.export.onnx.engine import OnnxEngine
    from nanochat.export.onnx.write import onnx_model, save_graph

    if kv_cache != "float32":
        raise BackendError(
            f"kv_cache={kv_cache!r}, but an exported graph keeps keys and values in float32: leave kv_cache out, or "
            "choose another backend"
        )
    if bundle.graph is not None:
        return OnnxEngine(bundle.graph, num_threads=num_threads)
    with tempfile.TemporaryDirectory() as folder:
        save_graph(onnx_model(bundle, target="ort"), Path(folder) / GRAPH)
        return OnnxEngine(Path(folder) / GRAPH, num_threads=num_threads)
