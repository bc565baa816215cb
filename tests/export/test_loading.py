"""A model's files are read once, and what cannot be a model is told with the reason of every format."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import nanochat
from nanochat import backends
from nanochat.errors import ModelNotFoundError
from nanochat.export.export import export_model
from nanochat.export.formats import FORMATS, load
from nanochat.export.gguf.container import read_gguf
from nanochat.export.onnx.read import read_graph
from nanochat.init import freeze
from nanochat.proof.manifest import read_manifest
from nanochat.tensors import read_tensors
from tests.parity.random_models import random_bundle


@contextmanager
def calls_of(*functions: Callable[..., Any]) -> Iterator[Counter[str]]:
    """How often each function is called, by anyone, under whatever name."""
    names: dict[CodeType, str] = {f.__code__: f.__name__ for f in functions}
    calls = Counter(dict.fromkeys(names.values(), 0))

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in names:
            calls[names[frame.f_code]] += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(before)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in every format that is a file or folder of this package's own architecture."""
    folder = tmp_path_factory.mktemp("models")
    for kind, name in (("nanochat", "own"), ("gguf", "x.gguf"), ("onnx", "onnx")):
        export_model(random_bundle(), folder / name, kind=kind, verify=False)
    return folder


def test_a_directory_is_read_once(written: Path) -> None:
    with calls_of(read_manifest, backends.choose, freeze, read_tensors) as calls:
        nanochat.from_pretrained(written / "own", backend="numba")

    assert calls == {"read_manifest": 1, "choose": 1, "freeze": 0, "read_tensors": 1}


@pytest.mark.parametrize(
    ("name", "backend", "read"),
    [("x.gguf", "numba", read_gguf), ("onnx", "auto", read_graph), ("onnx", "numba", read_graph)],
)
def test_a_container_is_read_once(
    name: str, backend: str, read: Callable[..., Any], written: Path
) -> None:
    with calls_of(read, read_manifest, backends.choose) as calls:
        nanochat.from_pretrained(written / name, backend=backend)

    assert calls[read.__name__] == 1
    assert calls["read_manifest"] <= 1
    assert calls["choose"] == 1


def test_verifying_reads_nothing_twice(written: Path) -> None:
    with calls_of(read_gguf, read_manifest) as calls:
        nanochat.from_pretrained(written / "x.gguf", backend="numba", verify=True)

    assert calls["read_gguf"] == 1


def test_a_folder_without_a_model_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no model, which is .* or \.onnx file"):
        load(tmp_path)


def test_what_no_format_claims_is_told_with_the_reason_of_each(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"\x80\x04")

    with pytest.raises(ModelNotFoundError) as error:
        load(path)

    assert str(error.value).startswith(f"{path} is no model that can be read (")
    for kind in FORMATS:
        assert f"{kind}: " in str(error.value)


def test_of_two_models_in_one_folder_it_is_said_which_is_taken_and_how_to_ask_for_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = random_bundle(num_layers=1), random_bundle(num_layers=2)
    export_model(first, tmp_path, kind="nanochat", verify=False)
    export_model(second, tmp_path / "x.gguf", kind="gguf", verify=False)
    caplog.set_level("INFO", logger="nanochat")

    taken = nanochat.from_pretrained(tmp_path, backend="numba")
    said = [record.getMessage() for record in caplog.records]
    other = nanochat.from_pretrained(tmp_path / "x.gguf", backend="numba")

    assert (taken.config.num_layers, other.config.num_layers) == (1, 2)
    assert (
        f"{tmp_path} holds several models, of which the folder's own safetensors is opened, because safetensors comes "
        f"before gguf: for another, pass {tmp_path}/x.gguf"
    ) in said
