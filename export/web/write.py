"""This file holds the export for browsers: a folder with a page, the model, and all that the page needs to run it.

Any server of files will do, such as ``python -m http.server``; the page asks no other host for anything. The model is
there as three graphs over one file of 2-bit weights: ``model.float32.onnx`` widens them when it is loaded, which is
fastest where memory allows it; ``model.2-bit.onnx`` multiplies with the codes; ``model.onnx``, which the page does not
use, is the model for other programs. The page tries what can run, and keeps the fastest that computes what the golden
record of ``nanochat.json`` says; `write_manifest` must be called for the folder when it is complete.
"""

import json
import math
import shutil
from collections.abc import Callable
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import CARD, NUM_LOGITS, NUM_TOKENS, Bundle
from nanochat.errors import ConfigError
from nanochat.export.format import Progress
from nanochat.export.layouts import GRAPH, PAGE
from nanochat.export.npm import Package, package_folder
from nanochat.export.onnx.forms import move_tensors, write_packed_form, write_widened_form
from nanochat.export.onnx.write import export_onnx
from nanochat.model import forward
from nanochat.proof.golden import spread
from nanochat.proof.parity import least_equal
from nanochat.shapes import shapes
from nanochat.text.front_matter import read_usage
from nanochat.text.tokenizer import Tokenizer
from nanochat.weights import named_leaves

__all__ = ["RUNTIME", "write_web"]

_FILES = "page"
_WIDENED, _PACKED = "model.float32.onnx", "model.2-bit.onnx"
_DATA = f"{GRAPH}.data"
_ONNXRUNTIME = Package(
    name="onnxruntime-web",
    version="1.30.0",
    sha512="q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
    files=(
        "README.md",
        "dist/ort.wasm.bundle.min.mjs",
        "dist/ort-wasm-simd-threaded.wasm",
        "dist/ort.jspi.bundle.min.mjs",
        "dist/ort-wasm-simd-threaded.jspi.wasm",
    ),
)
_TOKENIZERS = Package(
    name="@huggingface/tokenizers",
    version="0.2.0",
    sha512="LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
    files=("LICENSE", "README.md", "dist/tokenizers.min.mjs"),
)
_RUNTIMES = {"onnxruntime-web": _ONNXRUNTIME, "tokenizers": _TOKENIZERS}

# The end of the card.
_SERVE = """

## Serve this page

Any server of files will do; browsers give a page its threads, and keep it, over https or from their own machine only:

```sh
python -m http.server    # in this folder; then open http://localhost:8000
```
"""

# WASM has 4 GiB at most, and needs three times the weights while it loads them.
_LARGEST_BYTES = 2**30

# What runs the model in the page, for reports.
RUNTIME = f"{_ONNXRUNTIME.name} {_ONNXRUNTIME.version}"


def write_web(folder: Path, bundle: Bundle, *, progress: Progress | None = None) -> None:
    """Write the page of a model to an empty folder, without ``nanochat.json``."""
    if not isinstance(bundle.tokenizer, Tokenizer):
        raise ConfigError(
            f"{bundle.name} has another program's tokenizer: the page can use only those of this package, whose pieces "
            "it knows the bytes of; run the model with this package, or export ONNX"
        )
    steps: list[Callable[[], None]] = [
        lambda: _copy_runtimes(folder / "runtime"),
        lambda: export_onnx(bundle, folder / GRAPH),
        lambda: move_tensors(folder / GRAPH),
        lambda: _require_room(folder / _DATA, bundle.name),
        lambda: write_widened_form(folder / GRAPH, folder / _WIDENED, bundle),
        lambda: write_packed_form(folder / GRAPH, folder / _PACKED, bundle),
        lambda: _write_rest(folder, bundle),
    ]
    for number, step in enumerate(steps):
        step()
        if progress is not None:
            progress(number + 1, len(steps))


def _copy_runtimes(folder: Path) -> None:
    for name, package in _RUNTIMES.items():
        place = folder / name
        place.mkdir(parents=True)
        fetched = package_folder(package)
        for file in sorted(path for path in fetched.rglob("*") if path.is_file()):
            shutil.copyfile(file, place / file.name)


def _require_room(data: Path, name: str) -> None:
    size = data.stat().st_size
    if size > _LARGEST_BYTES:
        raise ConfigError(
            f"{name} has {size} bytes of weights: a page has room for {_LARGEST_BYTES}; export GGUF or ONNX"
        )


def _write_rest(folder: Path, bundle: Bundle) -> None:
    for name, content in bundle.tokenizer.files().items():
        (folder / name).write_bytes(content)
    _write_json(folder / "generation_config.json", dict(bundle.generation))
    card = bundle.card or f"# {bundle.name}\n".encode()
    (folder / CARD).write_bytes(card.rstrip() + _SERVE.encode())
    usage = read_usage(bundle.card)
    leaves = named_leaves(shapes(bundle.config))
    details = {
        "runtime": RUNTIME,
        # What the page's memory must have room for.
        "float32_bytes": sum(math.prod(spec.shape) for _, spec in leaves) * 4,
        "packed_bytes": (folder / _DATA).stat().st_size,
        "least_equal": least_equal(bundle.config),
        "alone": _alone(bundle),
        "summary": usage.summary,
        "example": usage.example,
        # Unless the card says that it was not trained to.
        "chats": usage.chats is not False,
    }
    _write_json(folder / PAGE, details)
    _copy(resources.files(__package__) / _FILES, folder)


def _alone(bundle: Bundle) -> list[list[float]]:
    """Samples of the logits after each token of the golden record, as a sequence of its own.

    In one token few roundings can flip, so these tell the model's numbers from numbers that are rounded otherwise.
    """
    ops, config = ReferenceOps(), bundle.config
    tokens = spread(config.vocab_size, NUM_TOKENS)[:, None]
    logits = forward(ops.tokens(tokens), ops.prepare(bundle.weights), config, ops)[:, 0]
    places = spread(config.vocab_size, NUM_LOGITS)
    return [[float(f"{value:.6g}") for value in row] for row in logits[:, places].tolist()]


def _copy(page: Traversable, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for entry in page.iterdir():
        if entry.is_dir():
            _copy(entry, folder / entry.name)
        else:
            (folder / entry.name).write_bytes(entry.read_bytes())


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
