"""This file holds the chat templates of real models, as two Python packages bring them: nothing of them is run."""

import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

from nanochat.files import atomic_directory

# What pip checks, of the only file that it may fetch.
_WHEELS = {
    "trl==1.16.0": "c4726e139dd40e1a41661511c639c8a68416782b2e3e8c0befebd77bb7ba0396",
    "axolotl==0.19.0": "f28eb3ad3709975eec4adfe13307dd980c7e7917cc43cb03f2c6f26c007135cc",
}


@cache
def real_templates() -> dict[str, str]:
    """Templates in Jinja, by package and model; fetched once, and kept below ``~/.cache/nanochat/wheels``."""
    found = {}
    for requirement, digest in _WHEELS.items():
        package, _, version = requirement.partition("==")
        folder = Path.home() / ".cache" / "nanochat" / "wheels" / package / version
        if not folder.exists():
            with atomic_directory(folder) as new:
                _fetch(requirement, digest, new)
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            for name in wheel.namelist():
                if name.endswith(".jinja"):
                    found[f"{package}/{Path(name).stem}"] = wheel.read(name).decode()
    return found


def _fetch(requirement: str, digest: str, folder: Path) -> None:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{requirement} --hash=sha256:{digest}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
    ]
    done = subprocess.run(
        [*command, "--dest", str(folder), "--requirement", str(wanted)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
