"""This package holds the backend of exported graphs, ONNX Runtime, as a choice; `nanochat.export.run` starts it."""

from nanochat.backends.backend import Backend

__all__ = ["BACKEND"]

BACKEND = Backend(
    module="onnxruntime",
    fix="pip install 'nanochat-ternary[onnx]'",
    libraries=("onnxruntime",),
    takes_threads=True,
    load=None,
)
