"""This file holds the small model whose texts are scored, on several backends and from an exported file."""

import tempfile
from functools import cache
from pathlib import Path

from nanochat.export.export import export_model
from nanochat.lm import Model
from tests.parity.random_models import random_bundle

__all__ = ["RUNNERS", "model"]

RUNNERS = ["numba", "torch", "onnx file"]


@cache
def model(runner: str) -> Model:
    """Two layers of random weights, with a context of 64 tokens."""
    if runner != "onnx file":
        return Model.from_bundle(random_bundle(), backend=runner)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_model(random_bundle(), path, kind="onnx", verify=False)
        return Model.from_pretrained(path)
