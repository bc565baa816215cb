"""A name leads to files, or to a sentence that says what to do instead; nothing here uses the network."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from nanochat.errors import ModelNotFoundError, SaveError
from nanochat.presets import PRESETS
from nanochat.zoo import catalog, hub
from nanochat.zoo.catalog import CATALOG
from nanochat.zoo.hub import FILES, resolve


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory that could be a model, in an otherwise empty working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


class Download:
    """Stands for the Hub's client: records what it was asked for, and gives or raises what it was told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: dict[str, Any] = {}
        self.result: str | Exception = ""
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self)

    def __call__(self, repo: str, **options: Any) -> str:
        self.asked = {"repo": repo, **options}
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def download(monkeypatch: pytest.MonkeyPatch, model: Path) -> Download:
    (model / "config.json").write_text("{}")
    download = Download(monkeypatch)
    download.result = str(model)
    return download


def http_error(name: str) -> Exception:
    """Return an exception of the Hub's client without the response that it asks for."""
    kind = getattr(huggingface_hub.errors, name)
    error = kind.__new__(kind, "from the Hub")
    assert isinstance(error, Exception)
    return error


@pytest.mark.parametrize("entry", CATALOG.values(), ids=CATALOG)
def test_an_entry_has_a_preset_and_a_place_or_none(entry: catalog.Entry) -> None:
    assert entry.preset in PRESETS
    assert entry.repo is None or not entry.ships
    assert entry.description
    assert entry.licence


def test_every_preset_has_a_name() -> None:
    assert {entry.preset for entry in CATALOG.values()} == set(PRESETS)


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


def test_a_directory_comes_before_the_hub(model: Path, download: Download) -> None:
    (model.parent / "org" / "name").mkdir(parents=True)

    assert resolve("org/name") == Path("org/name")
    assert not download.asked


def test_a_gguf_file_is_itself(model: Path) -> None:
    (model / "x.gguf").write_bytes(b"GGUF")

    assert resolve("model/x.gguf") == Path("model/x.gguf")


def test_the_model_that_ships_is_in_the_package(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_WEIGHTS", model)
    (model / "nanochat-tiny").mkdir()

    assert resolve("nanochat-tiny") == model / "nanochat-tiny"


def test_a_model_that_was_left_out_says_so(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_WEIGHTS", model)

    with pytest.raises(ModelNotFoundError, match="nanochat-tiny is not in this installation"):
        resolve("nanochat-tiny")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "entry", [e for e in CATALOG.values() if not e.ships and e.repo is None], ids=lambda e: e.name
)
def test_a_model_without_weights_names_the_ways_on(entry: catalog.Entry) -> None:
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
        ("small-560m", "did you mean nanochat-560m"),
        ("Tiny", "did you mean nanochat-tiny"),
        ("llama", "choose one of nanochat-tiny, nanochat-d20"),
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
        ("https://huggingface.co/org/name", "no model is named"),
    ],
)
def test_a_name_of_nothing_says_what_to_do(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        resolve(name)


def test_a_repository_is_fetched_but_only_a_model_s_files(model: Path, download: Download) -> None:
    path = resolve("org/name", token="secret", cache_dir=model, local_files_only=True)

    assert path == model
    assert download.asked["repo"] == "org/name"
    assert download.asked["revision"] is None
    assert download.asked["token"] == "secret"
    assert download.asked["cache_dir"] == model
    assert download.asked["local_files_only"] is True
    assert download.asked["allow_patterns"] == list(FILES)
    assert not any(name.endswith((".py", ".bin", ".pkl", ".pt")) for name in FILES)


@pytest.mark.parametrize(
    ("name", "revision"),
    [("org/name@v1.0", None), ("org/name", "v1.0"), ("org/name@v1.0", "v1.0")],
)
def test_a_revision_is_named_either_way(
    name: str, revision: str | None, download: Download
) -> None:
    resolve(name, revision=revision)

    assert download.asked["repo"] == "org/name"
    assert download.asked["revision"] == "v1.0"


def test_two_revisions_are_refused(download: Download) -> None:
    with pytest.raises(ModelNotFoundError, match="two revisions"):
        resolve("org/name@a", revision="b")

    assert not download.asked


@pytest.mark.parametrize("name", ["model", "./model", "nanochat-tiny"])
def test_what_is_here_has_no_revisions(
    name: str, model: Path, download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_WEIGHTS", model)
    (model / "nanochat-tiny").mkdir()

    with pytest.raises(ModelNotFoundError, match=r"no revision 'x': .* leave it out"):
        resolve(name, revision="x")
    with pytest.raises(ModelNotFoundError, match=r"no revision 'x': .* leave it out"):
        resolve(f"{name}@x")

    assert not download.asked


def test_a_published_model_is_fetched_by_its_name(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = catalog.Entry(name="nanochat-x", preset="tiny", repo="org/x", description="x")
    monkeypatch.setattr(hub, "CATALOG", {"nanochat-x": entry})

    resolve("nanochat-x@v2")

    assert (download.asked["repo"], download.asked["revision"]) == ("org/x", "v2")


def test_a_repository_without_a_model_is_refused(model: Path, download: Download) -> None:
    (model / "config.json").unlink()

    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json"):
        resolve("org/name")

    assert download.asked


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("GatedRepoError", "accept its terms"),
        ("RepositoryNotFoundError", "no directory here and no model at https"),
        ("RevisionNotFoundError", "no revision 'v1'"),
        ("LocalEntryNotFoundError", "connect and try again"),
        ("HFValidationError", "pass owner/name"),
        ("HfHubHTTPError", "could not be fetched"),
    ],
)
def test_an_error_of_the_hub_is_said_in_words(error: str, message: str, download: Download) -> None:
    download.result = http_error(error)

    with pytest.raises(ModelNotFoundError, match=message):
        resolve("org/name@v1")


def test_a_full_disk_is_not_a_missing_model(download: Download) -> None:
    download.result = OSError(28, "No space left on device")

    with pytest.raises(SaveError, match="No space left on device; free space"):
        resolve("org/name")


def test_what_was_never_fetched_is_not_there_offline(model: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="was not fetched before"):
        resolve("org/name", cache_dir=model / "cache", local_files_only=True)


def test_a_directory_is_found_without_loading_the_client(model: Path) -> None:
    code = (
        "import sys; from nanochat.zoo.hub import resolve; resolve(sys.argv[1]); "
        "sys.exit('huggingface_hub.errors' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], cwd=Path(__file__).parents[2], check=False
    )

    assert done.returncode == 0
