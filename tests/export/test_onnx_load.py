"""The model comes back from an exported ONNX file as it went in, and no file can do harm."""

import base64
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.bundle import Golden
from nanochat.config import ModelConfig
from nanochat.errors import ConfigError, FormatError, NanochatError, NumericError
from nanochat.export.onnx import write as exporter
from nanochat.export.onnx.read import read_golden, read_graph, read_model
from nanochat.export.onnx.write import Target, export_onnx
from nanochat.export.transform import without_ahead
from nanochat.proof.golden import record
from nanochat.weights import Stored, Weights, named_leaves
from tests.parity.random_models import random_bundle

TARGETS: tuple[Target, ...] = ("ort", "standard")
DELTA = {"delta_heads": 2, "delta_key_dim": 64, "delta_value_dim": 128}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied head": {"tie_embeddings": False},
    "dense tables": {"table_format": "dense", "tie_embeddings": False},
    "a scale per 128": {"weight_block": 128},
    "a scale per row": {"weight_block": "row", "width": 512},
    "gates and sub-norms": {"attention_gate": True, "sub_norm": True, "qk_norm": False},
    "relu2": {"activation": "relu2"},
    "hybrid": {"layer_pattern": ("delta", "attention"), **DELTA},
    "experts": {"num_experts": 3, "expert_width": 256, "shared_expert_width": 256},
    "mHC": {"num_streams": 4},
    "mHC dynamic": {"num_streams": 2, "coefficients": "dynamic", "mixer": "sinkhorn"},
    "loop": {"loop_count": 2, "num_ahead": 1},
}
Change = Callable[[onnx.ModelProto], object]


def load_graph(path: Path) -> tuple[ModelConfig, Weights[Stored]]:
    return read_model(path, read_graph(path))


def golden_of(path: Path) -> Golden | None:
    return read_golden(path, read_graph(path))


def arrays(leaf: Stored) -> dict[str, Any]:
    return {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(t for t in model.graph.initializer if t.name == name)
    return found


def changed(path: Path, change: Change, *, target: Target = "ort") -> Path:
    """An exported file, changed."""
    export_onnx(random_bundle(), path, target=target)
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


def write(model: onnx.ModelProto, name: str, values: Any, dtype: type[np.generic]) -> None:
    """Put values at the beginning of a tensor."""
    start = np.array(values, dtype).tobytes()
    found = tensor(model, name)
    found.raw_data = start + found.raw_data[len(start) :]


def set_metadata(model: onnx.ModelProto, key: str, value: str) -> None:
    entry = next(entry for entry in model.metadata_props if entry.key == key)
    entry.value = value


def set_config(model: onnx.ModelProto, **changes: object) -> None:
    text = next(entry.value for entry in model.metadata_props if entry.key == "config")
    set_metadata(model, "config", json.dumps(json.loads(text) | changes))


def move_out(model: onnx.ModelProto, name: str = "norm", **place: str) -> None:
    """Say that a tensor stands in another file."""
    found = tensor(model, name)
    found.ClearField("raw_data")
    found.data_location = onnx.TensorProto.EXTERNAL
    for key, value in place.items():
        found.external_data.add(key=key, value=value)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_every_leaf_comes_back_exactly(case: str, target: Target, tmp_path: Path) -> None:
    source = random_bundle(**CASES[case])
    export_onnx(source, tmp_path / "model.onnx", target=target)

    config, weights = load_graph(tmp_path / "model.onnx")

    written = without_ahead(source)
    assert config == written.config
    expected, found = dict(named_leaves(written.weights)), dict(named_leaves(weights))
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert type(found[name]) is type(leaf)
        for field, value in arrays(leaf).items():
            np.testing.assert_array_equal(getattr(found[name], field), value, err_msg=name)
            assert getattr(found[name], field).__class__ is value.__class__


def test_the_golden_record_comes_back(tmp_path: Path) -> None:
    source = random_bundle()
    export_onnx(source, tmp_path / "model.onnx")

    found = golden_of(tmp_path / "model.onnx")

    assert found is not None
    assert dataclasses.replace(found, graph="") == record(source)
    assert found.graph


def test_tensors_beside_the_file_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random_bundle()
    monkeypatch.setattr(exporter, "_LARGEST_FILE", 0)
    export_onnx(source, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").exists()

    _, weights = load_graph(tmp_path / "model.onnx")

    for name, leaf in named_leaves(source.weights):
        for field, value in arrays(leaf).items():
            found = getattr(dict(named_leaves(weights))[name], field)
            np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: set_metadata(m, "config", "{"), "not valid JSON"),
        (lambda m: m.ClearField("producer_name"), "written by another program"),
        (lambda m: m.ClearField("metadata_props"), "written by 'nanochat-ternary'"),
        (lambda m: m.metadata_props.add(key="name", value="x"), "'name' is there twice"),
        (lambda m: m.graph.initializer.append(tensor(m, "norm")), "'norm' is there twice"),
        (lambda m: m.graph.initializer.remove(tensor(m, "norm")), "norm is missing"),
        (lambda m: tensor(m, "norm").dims.append(2), "needs 2048 bytes and has 1024"),
        (lambda m: tensor(m, "norm").dims.append(-1), "has the shape"),
        (lambda m: tensor(m, "norm").dims.append(2**62), "needs 4722366482869645213696 bytes"),
        (lambda m: setattr(tensor(m, "norm"), "data_type", 10), "'norm' of shape"),
        (lambda m: setattr(tensor(m, "norm"), "data_type", 99), "norm is missing"),
        (lambda m: setattr(tensor(m, "norm"), "name", "norm.codes"), "norm is missing"),
        (
            lambda m: setattr(tensor(m, "norm"), "name", "layers.0.mixer.o+q.codes"),
            "stands in 'layers.0.mixer.o.q' and elsewhere",
        ),
        (lambda m: set_config(m, width=512), "type"),
        (lambda m: set_config(m, num_layers=3), "layers.2.* is missing"),
        (
            lambda m: set_config(m, weight_block=256, activation_block=256),
            "activation_block=256",
        ),
        (lambda m: set_config(m, weight_block=128), None),
        (lambda m: write(m, "embedding.scales", [0.1], np.float32), "embedding.scales are not"),
        (
            lambda m: write(m, "layers.0.mixer.o.scales", [1e9, 1e9], np.float32),
            "layers.0.mixer.o.scales are not",
        ),
    ],
    ids=[
        "metadata that is no JSON",
        "no producer",
        "no metadata",
        "metadata twice",
        "tensor twice",
        "no tensor",
        "more numbers than bytes",
        "negative size",
        "size beyond memory",
        "another type",
        "unknown type",
        "another name",
        "name in two groups",
        "another width",
        "another number of layers",
        "another block of both",
        "finer blocks",
        "scales of a table",
        "scales of a linear",
    ],
)
def test_a_forged_file_is_refused(change: Change, reason: str | None, tmp_path: Path) -> None:
    path = changed(tmp_path / "model.onnx", change)
    if reason is None:
        # Finer blocks hold the same numbers: it is another description of the same model.
        load_graph(path)
        return

    with pytest.raises(FormatError, match=reason):
        load_graph(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: write(m, "norm", [np.inf], np.float32), "norm holds inf"),
        (
            lambda m: write(m, "layers.0.mixer.o.scales", [np.nan], np.float32),
            "o.scales holds nan",
        ),
        (
            lambda m: write(m, "layers.0.mixer.q+k+v.codes", [0], np.uint8),
            "stands for no code",
        ),
        (lambda m: write(m, "embedding.codes", [0], np.uint8), "holds -128"),
    ],
    ids=["infinity", "NaN scale", "code 3", "code -128"],
)
@pytest.mark.parametrize("target", TARGETS)
def test_illegal_numbers_are_refused(
    change: Change, reason: str, target: Target, tmp_path: Path
) -> None:
    with pytest.raises(NumericError, match=reason):
        load_graph(changed(tmp_path / "model.onnx", change, target=target))


@pytest.mark.parametrize(
    "location",
    ["", "../secret", "/etc/passwd", "a/b", "..", ".", "C:secret", "a\\b", "a\0b"],
    ids=repr,
)
def test_tensors_in_other_folders_are_not_read(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(1024))
    folder = tmp_path / "model"
    folder.mkdir()

    path = changed(folder / "model.onnx", lambda m: move_out(m, location=location, length="1024"))

    with pytest.raises(FormatError, match="must be the name of a file in the same"):
        load_graph(path)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ({"location": "absent", "length": "1024"}, "No such file"),
        ({"location": "empty", "length": "1024"}, "empty"),
        ({"location": "data", "length": "1024", "offset": "8"}, "has 1016"),
        ({"location": "data", "length": "4096"}, "needs 1024 bytes and has 4096"),
        ({"location": "data", "length": "1024", "offset": "9" * 400}, "fetch the file again"),
        ({"location": "data", "length": "-1"}, "has '-1' bytes"),
        ({"location": "data", "length": "²"}, "has '²' bytes"),
    ],
    ids=str,
)
def test_tensors_that_are_not_beside_the_file_are_refused(
    place: dict[str, str], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "data").write_bytes(bytes(1024 if "offset" in place else 4096))

    path = changed(tmp_path / "model.onnx", lambda m: move_out(m, **place))

    with pytest.raises(FormatError, match=reason):
        load_graph(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "is missing"),
        (7, "is missing"),
        ("?", "is no base 64"),
        ("ä", "is no base 64"),
        (base64.b64encode(bytes(12)).decode(), "has 12 bytes"),
    ],
    ids=repr,
)
def test_forged_leaves_beside_the_graph_are_refused(
    text: object, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(random_bundle(num_streams=2), path)
    model = onnx.load(path)
    leaves = json.loads(next(e.value for e in model.metadata_props if e.key == "leaves"))
    name = "layers.1.network_site.mhc.read"
    assert name in leaves
    set_metadata(model, "leaves", json.dumps(leaves | {name: text}))
    path.write_bytes(model.SerializeToString())

    with pytest.raises(FormatError, match=f"{name} {reason}"):
        load_graph(path)


def test_files_of_other_programs_and_of_none_are_refused(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph([], "other", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    (tmp_path / "text.onnx").write_bytes(b"no protocol buffer")
    (tmp_path / "empty.onnx").touch()

    for name, reason in {
        "other": "another program",
        "text": "no ONNX file",
        "empty": "another program",
        "absent": "No such file",
    }.items():
        with pytest.raises(FormatError, match=reason):
            load_graph(tmp_path / f"{name}.onnx")


def test_an_impossible_configuration_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "model.onnx", lambda m: set_config(m, num_heads=0))

    with pytest.raises(ConfigError, match="num_heads"):
        load_graph(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "model.onnx"
    export_onnx(random_bundle(num_layers=1, num_streams=2), path)
    return path


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_damage_does_harm(data: st.DataObject, file: Path) -> None:
    content = bytearray(file.read_bytes())
    # Most of the file are tensors; the damage goes where names, shapes and types are.
    places = [place for place in range(len(content)) if place < 40_000 or place % 97 == 0]
    for place in data.draw(st.lists(st.sampled_from(places), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    damaged = file.with_name("damaged.onnx")
    damaged.write_bytes(
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )

    try:
        load_graph(damaged)
        golden_of(damaged)
    except NanochatError:
        pass
