"""This file holds what the tests of downloads share: small repositories, and a download in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from nanochat.zoo.candidates import Location
from tests.zoo.hub_server import environment
from tests.zoo.hub_state import Hub

__all__ = ["OWN", "SEVERAL", "WEIGHTS", "fetched_names", "in_process"]

ROOT = Path(__file__).parents[2]
WEIGHTS = bytes(range(256)) * 80
OWN = {
    "config.json": b"{}",
    "model.safetensors": WEIGHTS,
    "tokenizer.json": b'{"tokenizer": 1}',
    "README.md": b"# A card\n",
}
SEVERAL = {
    **OWN,
    "x-TQ2_0.gguf": b"GGUF" + WEIGHTS,
    "onnx/model.onnx": b"onnx" + WEIGHTS,
    "onnx/tokenizer.json": b"{}",
    "run.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
}


def fetched_names(location: Location) -> set[str]:
    assert location.fetched is not None
    snapshot = location.fetched.snapshot
    return {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()}


def in_process(hub: Hub, home: Path, code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code],
        # What is compiled under a limit on file sizes would be broken for all that come later.
        env=os.environ
        | environment(hub, home)
        | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
