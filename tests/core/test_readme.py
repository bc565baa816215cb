"""What the README shows is what happens, and the documents name what is there."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").iterdir()))
}
# A path, and after it, perhaps, what is defined in the file. One with NAME in it is to be made.
PLACES = re.compile(
    r"`((?:nanochat|backends|export|zoo|tests|docs|bench|scripts)/[\w/.]*)`(?:\s+`(\w+)`)?"
)
EVERYTHING = "\n".join(DOCUMENTS.values())
# Those of docs/serving.md need a server, which tests/serve/test_docs.py has; that of docs/train.md takes minutes, and
# tests/training/test_plan.py plans it.
PYTHON = {
    f"{name} {number}": block
    for name, text in DOCUMENTS.items()
    if name not in ("serving.md", "train.md")
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.DOTALL))
}
SHELL = "\n".join(re.findall(r"^```sh\n(.*?)^```", EVERYTHING, re.MULTILINE | re.DOTALL))
VERBS = sorted(
    set(re.findall(r"^(nanochat(?: data| models)? [a-z]+|nanochat-export)", SHELL, re.MULTILINE))
)


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks_run(block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PYTHON[block]], cwd=ROOT, capture_output=True, text=True, check=False
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


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document: str) -> None:
    folder = ROOT if (ROOT / document).exists() else ROOT / "docs"
    links = re.findall(r"\]\(([\w.][\w/.-]*)\)", DOCUMENTS[document])

    assert [link for link in links if not (folder / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_functions_that_are_named_are_there(document: str) -> None:
    named = [m.groups() for m in PLACES.finditer(DOCUMENTS[document]) if "NAME" not in m[1]]

    assert [path for path, _ in named if not (ROOT / path).exists()] == []
    assert [(path, name) for path, name in named if name and name not in defined(ROOT / path)] == []


def defined(path: Path) -> set[str]:
    """Names of all functions, methods and classes in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {n.name for n in ast.walk(tree) if isinstance(n, kinds)}
