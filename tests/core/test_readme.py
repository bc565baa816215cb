"""What the README shows is what happens."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
VERBS = sorted(
    set(re.findall(r"^(nanochat(?: data| models)? [a-z]+|nanochat-export)", SHELL, re.MULTILINE))
)


@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.splitlines()[0])
def test_python_blocks_run(block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_commands_exist_and_take_the_options_shown(verb: str) -> None:
    lines = [line for line in SHELL.splitlines() if line.startswith(verb)]
    shown = set(re.findall(r"--[a-z-]+", " ".join(lines)))
    module = "nanochat.cli.export" if verb == "nanochat-export" else "nanochat.cli"
    start = f"import sys; from {module} import main; sys.argv[0] = 'x'; main()"

    done = subprocess.run(
        [sys.executable, "-c", start, *verb.split()[1:], "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert shown <= set(re.findall(r"--[a-z-]+", done.stdout))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(([a-z][\w/.-]+)\)", README))))
def test_links_lead_to_files(path: str) -> None:
    assert (ROOT / path).exists()
