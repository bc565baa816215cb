"""The whole way of a model, by the commands that the README shows: train, push, pull by name, verify, generate."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nanochat
from nanochat import backends
from nanochat.data.prepare import prepare
from tests.core.command_line import Result
from tests.zoo.hub_client import HubClient
from tests.zoo.hub_server import environment, hub_server
from tests.zoo.hub_state import Hub

ROOT = Path(__file__).parents[2]
PROMPT = "fn main() {"
PUSH = ("--licence", "MIT", "--backend", "numba")
GREEDY = ("--prompt", PROMPT, "--max-tokens", "24", "--temperature", "0")
RECIPE = {
    "model": {
        "vocab_size": 300,
        "width": 256,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "ffn_width": 256,
        "context_length": 128,
        "num_streams": 2,
    },
    "steps": 20,
    "batch_size": 2,
    "length": 64,
    "warmup_steps": 2,
    "decay_steps": 5,
    "evaluate_every": 20,
    "snapshot_every": 20,
    "evaluation_windows": 4,
}


def command(hub: Hub, home: Path, *words: object, **variables: str) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "nanochat", *map(str, words)],
        env=os.environ | environment(hub, home / "hf") | {"PYTHONPATH": str(ROOT)} | variables,
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Result(code=done.returncode, out=done.stdout, err=done.stderr)


def succeed(hub: Hub, home: Path, *words: object, **variables: str) -> str:
    result = command(hub, home, *words, **variables)
    assert result.code == 0, result.err
    return result.out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has just been trained, by the command."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "corpus").mkdir()
    for number in range(12):
        lines = [f"fn f{i}(x: u32) -> u32 {{ x * {i} + f{i // 2}(x) }}\n" for i in range(200)]
        (folder / "corpus" / f"{number}.rs").write_text("".join(lines[number:]))
    prepare([str(folder / "corpus")], folder / "data", 300, held_out=0.1)
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    words = ("recipe.json", "--data", "data", "--out", "runs/mine", "--no-compile")
    with hub_server() as hub:
        succeed(hub, folder, "train", *words, "--threads", "1")
    return folder / "runs" / "mine"


def test_a_trained_model_goes_to_the_hub_and_comes_back_by_its_name(
    run: Path, hub: Hub, tmp_path: Path
) -> None:
    text = succeed(hub, tmp_path, "generate", run / "model", *GREEDY)

    succeed(hub, tmp_path, "models", "push", run / "model", "you/mine", *PUSH)
    shutil.rmtree(tmp_path / "hf", ignore_errors=True)
    succeed(hub, tmp_path, "models", "pull", "you/mine")
    verified = succeed(hub, tmp_path, "models", "verify", "you/mine", "--json")
    generated = succeed(hub, tmp_path, "generate", "you/mine", *GREEDY)
    hub.fault("*", method="*", times=10**6, status=503)
    offline = succeed(hub, tmp_path, "generate", "you/mine", *GREEDY, HF_HUB_OFFLINE="1")

    assert len(text) > 10
    assert generated == text
    assert offline == text
    report = json.loads(verified)
    assert report["files"] >= 5
    assert report["golden"] < 6e-2


@pytest.fixture(scope="module")
def pushed(run: Path) -> dict[str, bytes]:
    """The files of a repository with three formats."""
    with hub_server() as hub:
        words = ("models", "push", run / "model", "you/mine", "--licence", "MIT")
        formats = ("--format", "gguf", "--format", "onnx", "--backend", "numba")
        succeed(hub, run.parent, *words, *formats)
        return hub.files("you/mine")


@pytest.fixture
def published(pushed: dict[str, bytes], hub_client: HubClient) -> Hub:
    """The Hub that this process knows, with that repository."""
    hub_client.hub.add("you/mine", pushed)
    return hub_client.hub


def test_each_backend_opens_its_best_format_and_writes_the_same_text(
    published: Hub, run: Path
) -> None:
    expected = nanochat.from_pretrained(run / "model", backend="reference").generate(
        PROMPT, max_tokens=24
    )

    texts = {
        backend: nanochat.from_pretrained("you/mine", backend=backend, verify=True).generate(
            PROMPT, max_tokens=24
        )
        for backend in backends.BACKENDS
    }
    texts["gguf"] = nanochat.from_pretrained("you/mine:gguf", verify=True).generate(
        PROMPT, max_tokens=24
    )

    assert texts == dict.fromkeys(texts, expected)
    # All operations run the same file, a graph its own, and nothing else was asked for.
    fetched = {request.path.rpartition("/")[2] for request in published.asked("/cdn/*", "GET")}
    assert {name.rpartition(".")[2] for name in fetched} == {"safetensors", "onnx", "gguf"}


def test_a_model_that_was_changed_at_the_hub_is_found_by_its_record(published: Hub) -> None:
    """Whoever may write to a repository can make its files and hashes agree, but not what they compute."""
    files = published.files("you/mine")
    manifest = json.loads(files["nanochat.json"])
    config = json.loads(files["config.json"]) | {"rope_theta": 9000.0}
    del manifest["files"]["config.json"]
    published.commit(
        "you/mine",
        {
            "config.json": json.dumps(config).encode(),
            "nanochat.json": json.dumps(manifest).encode(),
        },
    )

    with pytest.raises(nanochat.errors.FormatError, match="its configuration is not as it was"):
        nanochat.from_pretrained("you/mine", backend="reference", verify=True)
