"""A format is added in one file: the commands detect it, load, write, verify, publish and fetch it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.command_line import Result
from tests.export import toy_format
from tests.parity.random_models import random_model
from tests.zoo.hub_server import environment
from tests.zoo.hub_state import Hub

ROOT = Path(__file__).parents[2]
GREEDY = ("--prompt", "to be", "--max-tokens", "8", "--temperature", "0")
MAINS = {"nanochat": "nanochat.cli", "nanochat-export": "nanochat.cli.export"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with one more file."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("nanochat", "backends", "export", "zoo"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    shutil.copyfile(toy_format.__file__, folder / "export" / "formats" / "toy.py")
    return folder


def command(tree: Path, hub: Hub, home: Path, *words: object, program: str = "nanochat") -> Result:
    code = f"from {MAINS[program]} import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, words)],
        env=os.environ
        | environment(hub, home / "hf")
        | {"PYTHONPATH": str(tree), "NANOCHAT_BACKEND": "reference"},
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return Result(code=done.returncode, out=done.stdout, err=done.stderr)


def test_a_format_in_one_file_is_written_read_verified_published_and_fetched(
    tree: Path, hub: Hub, tmp_path: Path
) -> None:
    def run(*words: object, program: str = "nanochat") -> str:
        result = command(tree, hub, tmp_path, *words, program=program)
        assert result.code == 0, result.err
        return result.out

    random_model().save_pretrained(tmp_path / "model", licence="MIT")
    text = run("generate", "model", *GREEDY)

    export = ("--format", "toy", "--packing", "stored", "--out", "x.toy", "model", "--json")
    written = json.loads(run(*export, program="nanochat-export"))
    verified = json.loads(run("models", "verify", "x.toy", "--json"))
    run("models", "push", "x.toy", "you/toy", "--backend", "reference")
    run("models", "push", "model", "you/both", "--format", "toy", "--backend", "reference")
    pulled = json.loads(run("models", "pull", "you/toy", "--json"))

    assert written["digests"] > 10
    assert verified["golden"] < 1e-5
    assert run("generate", "x.toy", *GREEDY) == text
    assert set(hub.files("you/toy")) >= {"x.toy", "nanochat.json", "README.md"}
    assert b"Toy archive" in hub.files("you/toy")["README.md"]
    assert set(hub.files("you/both")) >= {"both.toy", "model.safetensors"}
    assert (pulled["format"], list(pulled["files"])) == ("toy", ["x.toy"])
    assert run("generate", "you/toy", *GREEDY) == text
    assert run("generate", "you/both:toy", *GREEDY) == text


def test_its_options_are_told_with_those_of_all_others(
    tree: Path, hub: Hub, tmp_path: Path
) -> None:
    told = command(tree, hub, tmp_path, "--help", program="nanochat-export").out
    wrong = ("--format", "gguf", "--packing", "stored", "model")
    refused = command(tree, hub, tmp_path, *wrong, program="nanochat-export")
    missing = command(tree, hub, tmp_path, "generate", "no.toy", *GREEDY)

    assert "TOY: how the archive is packed." in told
    assert "--packing is for toy, not for gguf" in refused.err
    assert "no such directory, .gguf, .onnx or .toy file" in missing.err
