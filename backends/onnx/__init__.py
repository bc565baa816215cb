"""This package holds the backend of exported graphs, ONNX Runtime, as a choice; `nanochat.export.run` starts it."""

from nanochat.backends.backend import Backend, Footprint
from nanochat.cost import leaf_bytes
from nanochat.errors import how_to_install

__all__ = ["BACKEND"]

_RUNTIME, _PER_FEATURE = 100_000_000, 32

BACKEND = Backend(
    module="onnxruntime",
    fix=how_to_install("onnx"),
    libraries=("onnxruntime",),
    takes_threads=True,
    load=None,
    footprint=Footprint(
        runtime=_RUNTIME,
        kept=lambda spec: 2 * leaf_bytes(spec),
        # The graph as objects, as a file in memory, and as the session reads and arranges it.
        loading=lambda spec: int((4.5 if spec.kind == "int8" else 5.1) * leaf_bytes(spec)),
        per_feature=_PER_FEATURE,
    ),
    graph_footprint=Footprint(
        runtime=_RUNTIME,
        # In the session, and as the weights of the model.
        kept=lambda spec: 3 * leaf_bytes(spec),
        per_feature=_PER_FEATURE,
    ),
)
