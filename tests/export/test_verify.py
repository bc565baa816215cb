"""`models verify` finds what was changed in a file, and where a backend departs from the record."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nanochat import backends, checkpoint
from nanochat.backends.reference.ops import ReferenceOps
from nanochat.bundle import Bundle, Golden
from nanochat.errors import FormatError, ModelNotFoundError, NumericError
from nanochat.export.directory import save_model
from nanochat.export.export import export_model
from nanochat.export.formats import format_named, load
from nanochat.export.gguf.container import read_gguf
from nanochat.export.onnx.digest import seal
from nanochat.export.verify import verify_model
from nanochat.files import record_file
from nanochat.generation.engine import Engine
from nanochat.proof.check import compare_golden
from nanochat.proof.golden import record
from nanochat.proof.manifest import NAME
from nanochat.weights import Dense, Stored, map_leaves
from tests.parity.random_models import random_bundle

LOOP: dict[str, Any] = {"num_layers": 3, "loop_count": 2, "loop_prelude": 1, "loop_coda": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "streams": {"num_streams": 4, "coefficients": "dynamic"},
    "loop": LOOP,
    "adaptive": {**LOOP, "exit_threshold": 0.5},
    "delta": {"layer_pattern": ("delta",), "delta_value_dim": 128, "delta_heads": 2},
    "experts": {"num_experts": 2, "expert_width": 256},
}


def written(source: Bundle, folder: Path) -> Path:
    """A model directory with its record."""
    save_model(folder, source)
    return folder


def compare(source: Bundle, ops: ReferenceOps, *, golden: Golden) -> float:
    """Compare a model at work on a backend with a record."""
    engine = Engine(source.config, ops.prepare(source.weights), ops)
    return compare_golden(golden, engine, source.weights, where="x")


def changed(source: Bundle, name: str, change: Any) -> Bundle:
    def replace(path: str, leaf: Stored) -> Stored:
        return change(leaf) if path == name else leaf

    return dataclasses.replace(source, weights=map_leaves(replace, source.weights))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", backends.names())
def test_a_model_as_it_was_written_passes_on_every_backend(
    options: dict[str, Any], backend: str, tmp_path: Path
) -> None:
    checked = verify_model(written(random_bundle(**options), tmp_path / "x"), backend=backend)

    assert checked.backend == backend
    assert checked.golden is not None
    assert checked.golden <= 3e-2
    assert checked.files is not None
    assert checked.tensors > 10


def test_a_model_without_a_record_is_checked_as_far_as_possible(tmp_path: Path) -> None:
    path = written(random_bundle(), tmp_path / "x")
    (path / "nanochat.json").unlink()

    checked = verify_model(path, backend="reference")

    assert (checked.golden, checked.files) == (None, None)


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    path = written(random_bundle(), tmp_path / "x")
    tokenizer = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(tokenizer + "\n")

    with pytest.raises(FormatError, match=r"tokenizer\.json: .* fetch it again"):
        verify_model(path)


def with_half_the_scales(source: Bundle) -> Bundle:
    """Another model, of which one tensor differs."""
    return changed(
        source,
        "layers.1.network.up",
        lambda leaf: dataclasses.replace(leaf, scales=leaf.scales / np.float16(2)),
    )


def test_a_changed_tensor_of_a_directory_is_named(tmp_path: Path) -> None:
    source = random_bundle()
    path = written(source, tmp_path / "x")
    data = path / NAME
    manifest = data.read_bytes()
    save_model(path, with_half_the_scales(source))
    data.write_bytes(manifest)
    # Whoever changes the file can change its hash.
    rewrite_hash(path, "model.safetensors")

    with pytest.raises(FormatError, match=r"layers\.1\.network\.up is not as it was"):
        verify_model(path)


def test_a_changed_tensor_of_a_file_is_named(tmp_path: Path) -> None:
    source = random_bundle()
    paths = tmp_path / "x.gguf", tmp_path / "other.gguf"
    for path, model in zip(paths, (source, with_half_the_scales(source)), strict=True):
        export_model(model, path, kind="gguf", verify=False)
    name = "blk.1.ffn_up.weight"
    old, new = (read_gguf(path).tensors[name].data.tobytes() for path in paths)
    data = paths[0].read_bytes()
    paths[0].write_bytes(data.replace(old, new))

    with pytest.raises(FormatError, match=r"layers\.1\.network\.up is not as it was"):
        verify_model(paths[0])


KINDS: dict[str, dict[str, str]] = {"onnx": {}, "mlx": {}, "hf": {"runtime": "transformers"}}


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_folder_passes_though_it_lacks_what_is_for_training(
    kind: str, tmp_path: Path
) -> None:
    source = random_bundle(num_ahead=1, ahead_kind="sequential")
    options = format_named(kind).choose(**KINDS[kind])
    export_model(source, tmp_path / "x", kind=kind, options=options, verify=False)

    assert verify_model(tmp_path / "x").golden is not None


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_is_read_must_be_listed(name: str, tmp_path: Path) -> None:
    path = written(random_bundle(), tmp_path / "x")
    rewrite(path, lambda fields: fields["files"].pop(name))

    with pytest.raises(FormatError, match=f"{name} belongs to the model, and .* not list it"):
        verify_model(path)


@pytest.mark.parametrize(("kind", "name"), [("onnx", "model.onnx"), ("mlx", "model.safetensors")])
def test_a_file_of_an_export_must_be_listed(kind: str, name: str, tmp_path: Path) -> None:
    export_model(random_bundle(), tmp_path / "x", kind=kind, verify=False)
    rewrite(tmp_path / "x", lambda fields: fields["files"].pop(name))

    with pytest.raises(FormatError, match=f"{name} belongs to the model"):
        verify_model(tmp_path / "x")


def test_a_template_that_was_added_later_is_found(tmp_path: Path) -> None:
    path = written(random_bundle(), tmp_path / "x")
    (path / "chat_template.jinja").write_text("{{ 1 }}")

    with pytest.raises(FormatError, match="chat_template"):
        verify_model(path)


@pytest.mark.parametrize("kind", ["nanochat", "onnx"])
def test_a_configuration_that_is_not_the_files_is_found(kind: str, tmp_path: Path) -> None:
    path = written_as(kind, tmp_path / "x")
    rewrite(path, lambda fields: fields["config"].update(num_layers=7))

    with pytest.raises(FormatError, match="says num_layers=7, and the model's files say 2"):
        verify_model(path)


@pytest.mark.parametrize(
    ("kind", "said"), [("nanochat", "onnx"), ("nanochat", "gizmo"), ("onnx", "nanochat")]
)
def test_a_kind_that_is_not_the_files_is_found(kind: str, said: str, tmp_path: Path) -> None:
    path = written_as(kind, tmp_path / "x")
    rewrite(path, lambda fields: fields.update(kind=said))

    with pytest.raises(FormatError, match=f"says kind '{said}', and the files are of kind {kind}"):
        verify_model(path)


def written_as(kind: str, folder: Path) -> Path:
    """A model directory, or an exported folder, with its record."""
    if kind == "nanochat":
        return written(random_bundle(), folder)
    export_model(random_bundle(), folder, kind=kind, verify=False)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what ``nanochat.json`` says."""
    fields = json.loads((folder / NAME).read_text())
    change(fields)
    (folder / NAME).write_text(json.dumps(fields))


def rewrite_hash(folder: Path, name: str) -> None:
    """Make ``nanochat.json`` say of a file what it is now."""
    record = dataclasses.asdict(record_file(folder / name))
    rewrite(folder, lambda fields: fields["files"].update({name: record}))


def test_a_graph_is_run_unless_another_backend_is_named(tmp_path: Path) -> None:
    folder, file = with_negative_logits(tmp_path / "x"), tmp_path / "x" / "model.onnx"

    for path in (folder, file):
        with pytest.raises(FormatError, match="the head is the first that differs"):
            verify_model(path)
        # The weights in it are those that were written.
        assert verify_model(path, backend="numba").backend == "numba"


def test_the_environment_variable_names_a_backend_for_a_graph_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_BACKEND", "reference")

    assert verify_model(with_negative_logits(tmp_path / "x")).backend == "reference"


def with_negative_logits(folder: Path) -> Path:
    """An export whose graph does something else with the weights than it should, and whose hashes are right."""
    export_model(random_bundle(), folder, kind="onnx", verify=False)
    model = onnx.load(folder / "model.onnx")
    for node in model.graph.node:
        node.output[:] = ["positive" if name == "logits" else name for name in node.output]
    model.graph.node.append(onnx.helper.make_node("Neg", ["positive"], ["logits"]))
    # Whoever changes a graph can seal it again.
    golden = load(folder).golden
    assert golden is not None
    seal(model, golden)
    onnx.save(model, folder / "model.onnx")
    rewrite_hash(folder, "model.onnx")
    return folder


def test_an_illegal_code_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    export_model(random_bundle(), path, kind="gguf", verify=False)
    old = read_gguf(path).tensors["blk.1.ffn_up.weight"].data.tobytes()
    path.write_bytes(path.read_bytes().replace(old, b"\xff" + old[1:]))

    with pytest.raises(NumericError, match=r"layers\.1\.network\.up has a code 3"):
        verify_model(path)


class Wrong(ReferenceOps):
    """A backend with a mistake in one of its layers."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.seen = 0

    def attention(self, q: Any, k: Any, v: Any, **place: Any) -> Any:
        self.seen += 1
        y = super().attention(q, k, v, **place)
        return 1.5 * y if self.seen - 1 == self.layer else y


@pytest.mark.parametrize(("run", "layer"), [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_the_first_layer_that_departs_is_named(run: int, layer: int) -> None:
    source = random_bundle(**LOOP)

    with pytest.raises(FormatError, match=rf"x: layer {layer} is the first that differs"):
        compare(source, Wrong(run), golden=record(source))


@pytest.mark.parametrize(
    "change",
    [{"rope_theta": 9000.0}, {"norm_eps": 1e-2}, {"activation": "relu2_glu"}],
    ids=str,
)
def test_another_configuration_is_found(change: dict[str, Any]) -> None:
    source = random_bundle()
    other = dataclasses.replace(source, config=dataclasses.replace(source.config, **change))

    with pytest.raises(FormatError, match="layer 0 is the first that differs"):
        compare(other, ReferenceOps(), golden=record(source))


class Flipping(ReferenceOps):
    """A backend that rounds the first token of each batch's first sequence otherwise, for all later ones to see."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: set[tuple[int, ...]] = set()

    def rms_norm(self, x: Any, gain: Any, *, eps: float) -> Any:
        y = super().rms_norm(x, gain, eps=eps)
        if x.shape[:2] not in self.batches:
            self.batches.add(x.shape[:2])
            y[0, 0] *= np.float32(1.002)
        return y


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_rounding_that_flips_early_is_no_mistake(options: dict[str, Any]) -> None:
    source = random_bundle(**options)

    error = compare(source, Flipping(), golden=record(source))

    assert error < 6e-2


class Scaled(ReferenceOps):
    """A backend whose networks give a little too much."""

    def swiglu(self, gate: Any, up: Any) -> Any:
        return np.float32(1.003) * super().swiglu(gate, up)


def test_a_small_mistake_everywhere_is_found_in_the_first_layer() -> None:
    source = random_bundle()

    with pytest.raises(FormatError, match=r"layer 0 .* for every pair of tokens"):
        compare(source, Scaled(), golden=record(source))


def test_a_mistake_in_logits_of_which_there_are_no_samples_is_found() -> None:
    golden = record(random_bundle(vocab_size=4096))
    source = random_bundle(vocab_size=4096)
    louder = dataclasses.replace(golden, rms=tuple(1.1 * rms for rms in golden.rms))

    with pytest.raises(FormatError, match="the head is the first that differs"):
        compare(source, ReferenceOps(), golden=louder)


def test_another_most_probable_token_is_found() -> None:
    source = random_bundle()
    first, *rest = record(source).greedy
    other = dataclasses.replace(record(source), greedy=(1 if first == 0 else 0, *rest))

    with pytest.raises(FormatError, match="the most probable token is the first that differs"):
        compare(source, ReferenceOps(), golden=other)


@pytest.mark.parametrize("token", [-1, 320])
def test_a_most_probable_token_beyond_the_vocabulary_is_refused(token: int) -> None:
    source = random_bundle()
    other = dataclasses.replace(record(source), greedy=(token, *record(source).greedy[1:]))

    with pytest.raises(FormatError, match="tokens beyond the vocabulary of 320"):
        compare(source, ReferenceOps(), golden=other)


def test_a_head_that_departs_is_named() -> None:
    source = random_bundle()
    other = changed(source, "norm", lambda leaf: Dense(values=2 * leaf.values))

    with pytest.raises(FormatError, match="the head is the first that differs"):
        compare(other, ReferenceOps(), golden=record(source))


@pytest.mark.parametrize(
    "options", [{"num_layers": 3}, {"vocab_size": 310}, {"width": 512}], ids=str
)
def test_the_record_of_another_model_is_refused(options: dict[str, Any]) -> None:
    golden, other = record(random_bundle()), random_bundle(**options)

    with pytest.raises(FormatError):
        compare(other, ReferenceOps(), golden=golden)


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        verify_model(tmp_path)


def test_a_model_directory_s_own_checks_come_first(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "x", random_bundle().config, random_bundle().weights)

    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        verify_model(tmp_path / "x")
