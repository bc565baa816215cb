"""This file holds the Rust that is on this machine: the compiler, for questions of what is Rust, and source files."""

import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

__all__ = ["complaints", "rust_files"]

ROOT = Path(__file__).parents[2]
CARGO = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))


@cache
def _sysroot() -> Path:
    found = shutil.which("rustc") or shutil.which("rustc", path=str(CARGO / "bin"))
    assert found, "this test needs rustc: install it, or run scripts/test"
    command = [found, "--print", "sysroot"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Path(printed.strip())


def complaints(source: str, *, edition: str = "2021") -> str:
    """Return what rustc says against a library of this text; nothing if it takes it."""
    # What is on the path may be rustup's, which takes longer to start than the compiler itself.
    rustc = _sysroot() / "bin" / "rustc"
    options = [
        "--edition",
        edition,
        "--crate-type",
        "lib",
        "--emit",
        "metadata",
        "--cap-lints",
        "allow",
    ]
    # As root, rustc would put a file in the place of /dev/null.
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [rustc, *options, "--out-dir", folder, "-"],
            input=source.encode(),
            capture_output=True,
            check=False,
        )
    return ended.stderr.decode() if ended.returncode else ""


def rust_files() -> list[Path]:
    """Return the Rust source files of this repository, of the compiler's library, and of cargo's packages."""
    folders = [ROOT / name for name in ("backends", "export", "nanochat", "tests", "zoo")]
    folders += [_sysroot() / "lib" / "rustlib", CARGO / "registry" / "src"]
    return [path for folder in folders for path in sorted(folder.rglob("*.rs"))]
