"""A name leads to files, or to a sentence that says what to do instead; nothing here uses the network."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import FormatError, ModelNotFoundError
from nanochat.zoo import catalog
from nanochat.zoo.catalog import CATALOG
from nanochat.zoo.entries import Entry
from nanochat.zoo.hub import locate, resolve


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that could be a model, in an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def test_a_directory_is_itself(model: Path) -> None:
    assert resolve(str(model)) == model
    assert resolve("model") == Path("model")


def test_a_directory_under_home_is_found(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(model.parent))

    assert resolve("~/model") == model


def test_a_directory_comes_before_the_catalog_and_says_so(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (model.parent / "nanochat-560m").mkdir()

    with caplog.at_level(logging.WARNING):
        path = resolve("nanochat-560m")

    assert path == Path("nanochat-560m")
    assert "comes before the model of that name" in caplog.text


def test_a_directory_comes_before_the_hub_and_says_so(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (model.parent / "org" / "name").mkdir(parents=True)

    with caplog.at_level(logging.INFO):
        path = resolve("org/name")

    assert path == Path("org/name")
    assert "org/name is a directory here, and comes before a model of the Hub" in caplog.text


def test_a_gguf_file_is_itself(model: Path) -> None:
    (model / "x.gguf").write_bytes(b"GGUF")

    assert resolve("model/x.gguf") == Path("model/x.gguf")


def test_the_model_that_ships_is_in_the_package(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(catalog.directory(CATALOG["nanochat-tiny"]), model / "nanochat-tiny")
    monkeypatch.setattr(catalog, "_WEIGHTS", model)

    assert resolve("nanochat-tiny") == model / "nanochat-tiny"


def test_a_model_that_was_left_out_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_WEIGHTS", model)

    with pytest.raises(ModelNotFoundError, match="nanochat-tiny is not in this installation"):
        resolve("nanochat-tiny")


def test_a_wheel_that_is_not_unpacked_is_told(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = model / "nanochat.whl"
    wheel.touch()
    monkeypatch.setattr(catalog, "_WEIGHTS", wheel / "nanochat" / "zoo" / "weights")

    with pytest.raises(ModelNotFoundError, match=r"from inside .*nanochat\.whl, .*with pip"):
        resolve("nanochat-tiny")


@pytest.mark.usefixtures("model")
def test_an_alias_leads_where_the_name_does() -> None:
    with pytest.raises(ModelNotFoundError, match="nano-1b has no published weights yet"):
        resolve("nanochat-1b")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "entry", [e for e in CATALOG.values() if not e.ships and e.repo is None], ids=lambda e: e.name
)
def test_a_model_without_weights_names_the_ways_on(entry: Entry) -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        resolve(entry.name)

    message = str(raised.value)
    assert "no published weights yet" in message
    assert f"nanochat train --preset {entry.preset}" in message
    assert "owner/name" in message
    assert "model directory" in message


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nanochat-tyni", "did you mean nanochat-tiny"),
        ("small-560", "did you mean small-560m"),
        ("Tiny", "did you mean nanochat-tiny"),
        ("llama", "pass nanochat-tiny, a model of the Hugging Face Hub as owner/name"),
        ("", "no model is named ''"),
        ("./missing", "no such directory"),
        ("/missing/model", "no such directory"),
        ("missing.gguf", "no such directory, .gguf or .onnx file"),
        ("nope.onnx", "no such directory, .gguf or .onnx file"),
        ("./build/nope.onnx", "no such directory, .gguf or .onnx file"),
        ("org/name.gguf/x/y", "no model is named"),
        ("a/b/c", "no model is named"),
        ("../../etc", "no such directory"),
        ("a\0b", "no model is named"),
        ("x" * 5000, "no model is named"),
        ("~nobody-of-that-name/x", "no such directory"),
        ("org/", "no model is named"),
        ("https://huggingface.co/org/name", "did you mean org/name"),
        ("https://hf.co/org/name/tree/main", "did you mean org/name"),
        ("org/name/", "did you mean org/name"),
    ],
)
def test_a_name_of_nothing_says_what_to_do(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        resolve(name)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("name", ["model", "./model", "nanochat-tiny"])
def test_what_is_here_has_no_revisions(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no revision 'x': .* leave it out"):
        locate(name, revision="x")
    with pytest.raises(ModelNotFoundError, match=r"no revision 'x': .* leave it out"):
        locate(f"{name}@x")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("name", "message"),
    [("nanochat-tiny:gguf", "one format only"), ("model:gguf", "pass the path of its part")],
)
def test_what_is_here_has_no_parts(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        locate(name)


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("revision", ["../x", "-x", "/x", "a\0"])
def test_what_no_revision_can_be_is_refused(revision: str) -> None:
    with pytest.raises(ModelNotFoundError, match="is no revision"):
        locate("org/name", revision=revision)


@pytest.mark.usefixtures("model")
def test_two_revisions_are_refused() -> None:
    with pytest.raises(ModelNotFoundError, match="two revisions"):
        locate("org/name@a", revision="b")


def test_a_directory_of_several_formats_is_opened_as_a_repository_is(model: Path) -> None:
    for name in ("config.json", "model.safetensors", "onnx/model.onnx"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_bytes(b"")

    assert resolve("model", backend="numba") == Path("model")
    assert resolve("model", backend="onnx") == Path("model/onnx")


def test_between_the_files_of_a_directory_the_user_chooses(model: Path) -> None:
    (model / "a.gguf").write_bytes(b"GGUF")
    (model / "b.gguf").write_bytes(b"GGUF")

    with pytest.raises(ModelNotFoundError, match=r"choose one, model/a\.gguf"):
        locate("model")


def test_a_directory_with_one_file_of_a_model_leads_to_it(model: Path) -> None:
    (model / "x.gguf").write_bytes(b"GGUF")

    located = locate("model")

    assert located.path == Path("model/x.gguf")
    assert located.name == "model"


def test_the_files_of_the_model_that_ships_are_those_of_the_catalog() -> None:
    entry = CATALOG["nanochat-tiny"]
    folder = catalog.directory(entry)
    tensors = {path.name for path in folder.iterdir()} - {"README.md", "recipe.json"}

    assert entry.files.keys() == tensors
    catalog.require_pinned(entry, folder)


def test_a_changed_file_of_the_model_that_ships_is_not_opened(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(catalog.directory(CATALOG["nanochat-tiny"]), model / "nanochat-tiny")
    monkeypatch.setattr(catalog, "_WEIGHTS", model)
    config = model / "nanochat-tiny" / "config.json"
    config.write_text(config.read_text().replace("10000.0", "20000.0"))

    with pytest.raises(FormatError, match=r"config\.json: .* of the catalog"):
        resolve("nanochat-tiny")


def test_a_directory_is_found_without_loading_the_client(model: Path) -> None:
    code = (
        "import sys; from nanochat.zoo.hub import resolve; resolve(sys.argv[1]); "
        "sys.exit('huggingface_hub.errors' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], cwd=Path(__file__).parents[2], check=False
    )

    assert done.returncode == 0
