"""This file holds the model, and the ways to write, read and ask for it, with which a Hub on loopback is tested."""

import hashlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["FILES", "LARGE", "REPO", "SHA256", "ask", "read", "write"]

REPO = "org/name"
LARGE = np.random.default_rng(0).bytes(100_000)
SHA256 = hashlib.sha256(LARGE).hexdigest()
FILES = {"README.md": b"# A model\n", "inner/page.js": b"page", "model.safetensors": LARGE}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def ask(
    origin: str,
    method: str,
    path: str,
    body: str | Iterator[bytes] | None = None,
    token: str = "",
    range: str = "",
) -> tuple[int, bytes]:
    """Status and body of what a client that is not the real one asks, its path sent as it is."""
    headers = {"Authorization": f"Bearer {token}" if token else "", "Range": range}
    connection = http.client.HTTPConnection(origin.removeprefix("http://"))
    connection.request(method, path, body, {name: text for name, text in headers.items() if text})
    answer = connection.getresponse()
    status, got = answer.status, answer.read()
    connection.close()
    return status, got


def read(folder: str | Path) -> dict[str, bytes]:
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
