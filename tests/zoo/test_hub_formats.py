"""Whichever format a repository holds, the model in it is loaded by its name, and is the model that was written."""

from pathlib import Path

import numpy as np
import pytest

import nanochat
from nanochat import checkpoint
from nanochat.bundle import Bundle
from nanochat.errors import FormatError
from nanochat.export.directory import save_model
from nanochat.export.export import export_model
from nanochat.export.formats import format_named
from nanochat.lm import Model
from tests.core.foreign_tokenizers import write_llama_3
from tests.export.foreign_models import build, save
from tests.parity.random_models import random_bundle
from tests.zoo.hub_client import HubClient

IDS = [5, 300, 17, 42]


@pytest.fixture(scope="module")
def source() -> Bundle:
    return random_bundle()


def put(client: HubClient, folder: Path, *, under: str = "") -> set[str]:
    """Make a repository of a folder's files, and return their names."""
    files = {
        under + path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    client.hub.add("org/name", files)
    return set(files)


def fetched(client: HubClient) -> set[str]:
    """Names of the files whose bytes were asked for."""
    asked = client.hub.asked("*", "GET")
    return {r.path.rpartition("/")[2] for r in asked if "/resolve/" in r.path or r.host == "cdn"}


def require_same(source: Bundle, loaded: Model) -> None:
    expected = Model(source.config, source.weights, source.tokenizer, backend="reference")

    np.testing.assert_allclose(loaded.logits(IDS), expected.logits(IDS), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "written",
    [
        ("gguf", {}),
        ("onnx", {}),
        ("mlx", {}),
        ("hf", {"runtime": "transformers"}),
        ("hf", {}),
    ],
    ids=lambda written: f"{written[0]}-{written[1].get('runtime', 'auto')}",
)
@pytest.mark.parametrize("under", ["", "inner/"], ids=["root", "inner"])
def test_an_export_is_loaded_by_name(
    written: tuple[str, dict[str, str]],
    under: str,
    source: Bundle,
    hub_client: HubClient,
    tmp_path: Path,
) -> None:
    kind, chosen = written
    options = format_named(kind).choose(**chosen)
    (tmp_path / "x").mkdir()
    out = tmp_path / "x" / ("x.gguf" if kind == "gguf" else "")
    export_model(source, out, kind=kind, options=options, verify=False)
    put(hub_client, tmp_path / "x", under=under)

    require_same(source, nanochat.from_pretrained("org/name", backend="reference", verify=True))


def test_a_page_is_loaded_as_the_graph_in_it(
    source: Bundle, hub_client: HubClient, tmp_path: Path
) -> None:
    (tmp_path / "x" / "runtime").mkdir(parents=True)
    export_model(source, tmp_path / "graph", kind="onnx", verify=False)
    for name in ("model.onnx", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "x" / name).write_bytes((tmp_path / "graph" / name).read_bytes())
    for name in ("page.json", "runtime/ort.wasm", "model.float32.onnx", "index.html"):
        (tmp_path / "x" / name).write_text("{}")
    put(hub_client, tmp_path / "x")

    loaded = nanochat.from_pretrained("org/name", backend="onnx")

    require_same(source, loaded)
    assert fetched(hub_client) == {"model.onnx", "tokenizer.json", "tokenizer_config.json"}


def test_shards_are_one_model(source: Bundle, hub_client: HubClient, tmp_path: Path) -> None:
    checkpoint.save(
        tmp_path / "x",
        source.config,
        source.weights,
        others=source.tokenizer.files(),
        max_shard_bytes=60_000,
    )
    names = put(hub_client, tmp_path / "x")

    require_same(source, nanochat.from_pretrained("org/name", backend="reference"))
    assert sum(name.endswith(".safetensors") for name in names) > 2
    assert fetched(hub_client) == names


def test_a_bitnet_of_transformers_is_loaded_with_its_files_alone(
    hub_client: HubClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = build("autobitlinear packed", vocabulary=308)
    save(theirs, "autobitlinear packed", tmp_path / "x")
    write_llama_3(tmp_path / "x")
    (tmp_path / "x" / "modeling_bitnet.py").write_text("raise SystemExit")
    (tmp_path / "x" / "pytorch_model.bin").write_bytes(b"pickle")
    put(hub_client, tmp_path / "x")

    loaded = nanochat.from_pretrained("org/name", backend="reference")

    assert loaded.config.vocab_size == 308
    assert not {"modeling_bitnet.py", "pytorch_model.bin"} & fetched(hub_client)

    nanochat.from_pretrained("org/name", backend="reference", verify=True)
    assert "its files are those that the Hub lists; there is no golden record" in caplog.text
    with pytest.raises(FormatError, match="x has no golden record to be verified with, and is not"):
        nanochat.from_pretrained(tmp_path / "x", backend="reference", verify=True)


def test_a_saved_model_is_loaded_by_name_with_its_licence(
    source: Bundle, hub_client: HubClient, tmp_path: Path
) -> None:
    save_model(tmp_path / "x", source)
    put(hub_client, tmp_path / "x")

    loaded = nanochat.from_pretrained("org/name", backend="numba", verify=True)

    assert loaded.licence == "MIT"
    assert loaded.describe()["origin"].startswith("org/name@")  # type: ignore[attr-defined]
