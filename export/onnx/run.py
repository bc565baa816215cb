"""This file holds the start of a model in ONNX Runtime, whatever its files are."""

import tempfile
from pathlib import Path

from nanochat.errors import BackendError
from nanochat.export.onnx.engine import OnnxEngine
from nanochat.export.onnx.write import export_onnx
from nanochat.export.source import Source
from nanochat.loading import onnx_file
from nanochat.ops import Storage

__all__ = ["open_graph"]


def open_graph(
    path: Path, source: Source, *, kv_cache: Storage = "float32", num_threads: int | None = None
) -> OnnxEngine:
    """Run a model's graph: the one at `path`, or one that is written for it and forgotten.

    Parameters
    ----------
    path : Path
        What `source` was read from.
    kv_cache, num_threads
        See `nanochat.lm.Model`.

    Raises
    ------
    BackendError
        If keys and values shall be kept in another type than the graph's.
    """
    if kv_cache != "float32":
        raise BackendError(
            f"kv_cache={kv_cache!r}, but an exported graph keeps keys and values in float32: leave kv_cache out, or "
            "choose another backend"
        )
    file = onnx_file(path)
    if file is not None:
        return OnnxEngine(file, num_threads=num_threads)
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(source, Path(folder) / "model.onnx")
        return OnnxEngine(Path(folder) / "model.onnx", num_threads=num_threads)
