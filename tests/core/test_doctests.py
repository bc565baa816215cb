"""This file holds the run of every example in the package's docstrings.

Pytest's own collection of doctests would import every module at once and fail where a framework is missing.
"""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONAL = {"google", "mlx", "mlx_lm", "onnx", "onnxruntime", "torch", "transformers", "triton"}


def modules_with_examples() -> list[str]:
    """Return the import names of the modules whose text holds a prompt."""
    folders = {"nanochat": "nanochat"}
    folders |= {name: f"nanochat.{name}" for name in ("backends", "export", "zoo")}
    names = []
    for folder, package in folders.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            linked = folder == "nanochat" and parts[0] in folders
            if not linked and ">>> " in path.read_text(encoding="utf-8"):
                names.append(".".join([package, *parts]).removesuffix(".__init__"))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_show_what_they_say(name: str) -> None:
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in OPTIONAL:
            raise
        pytest.skip(f"{name} needs {missing}, which is not installed")

    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)

    assert result.attempted > 0, f"{name} has a prompt that is no example"
    assert result.failed == 0, f"{result.failed} examples of {name} failed; see the output above"
