"""This file holds the rules of who may import whom, and checks them on the syntax tree of every module.

Nothing is imported, so the rules hold for modules whose framework is not installed, too.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# An import points to a row further down, never up or to a neighbour, wherever in a module it stands.
ROWS = (
    ("__main__",),
    ("cli",),
    ("rl",),
    ("serve", "training"),
    ("experience",),
    ("evaluation",),
    ("lm",),
    ("publish",),
    ("zoo",),
    ("export",),
    ("proof",),
    ("judge", "memory"),
    ("backends", "bundle", "checkpoint", "problems"),
    ("data", "generation"),
    ("cost", "init", "tensors", "text"),
    ("model", "rows", "slots"),
    ("ops",),
    ("blocks", "draws", "rotary", "shapes"),
    ("presets", "rust", "ternary", "weights"),
    ("config", "files", "sandbox"),
    ("errors",),
)

# A backend knows operations, not architectures.
NEVER = {("backends", "model"), ("backends", "shapes")}

# The only files that may import a framework. Every other dependency than NumPy is listed here, too.
FRAMEWORKS = {
    "click": ("nanochat/cli/*",),
    "datasets": ("nanochat/data/hub.py",),
    "gguf": ("export/gguf/*",),
    "google": ("export/onnx/read.py",),
    "httptools": ("nanochat/serve/*",),
    "huggingface_hub": ("nanochat/data/hub.py", "nanochat/publish/*", "zoo/*"),
    "jinja2": ("nanochat/text/template.py",),
    "llguidance": ("nanochat/text/grammar.py",),
    "llvmlite": ("backends/numba/*",),
    "lm_eval": ("nanochat/evaluation/harness.py", "nanochat/evaluation/tasks.py"),
    "mlx": ("backends/mlx/*", "nanochat/training/*mlx*", "export/stock/mlx_run.py"),
    "ml_dtypes": ("nanochat/tensors.py", "nanochat/weights.py", "export/*"),
    "mlx_lm": ("export/stock/mlx_run.py",),
    "msgspec": ("nanochat/serve/*",),
    "numba": ("backends/numba/*",),
    "onnx": ("export/onnx/*",),
    "onnxruntime": ("export/onnx/*",),
    "opentelemetry": ("nanochat/serve/spans.py",),
    "prometheus_client": ("nanochat/serve/*",),
    "pydantic": ("nanochat/rl/*", "nanochat/training/*"),
    "psutil": ("backends/free_memory.py",),
    "pyarrow": ("nanochat/data/arrow.py",),
    "ray": ("nanochat/serve/ray.py",),
    "rensa": ("nanochat/data/near.py",),
    "rich": ("nanochat/cli/*", "nanochat/training/*"),
    "safetensors": ("nanochat/training/*",),
    "starlette": ("nanochat/serve/*",),
    "tokenizers": ("nanochat/text/library.py", "nanochat/text/tokenizer.py"),
    "torch": (
        "backends/torch/*",
        "export/stock/transformers_run.py",
        "nanochat/rl/*",
        "nanochat/training/*",
    ),
    "tqdm": ("nanochat/evaluation/harness.py",),
    "transformers": ("export/stock/transformers_run.py",),
    "triton": ("backends/torch/*",),
    "uvicorn": ("nanochat/serve/*",),
    "yaml": ("nanochat/publish/metadata.py", "nanochat/text/front_matter.py"),
}

# The only files in which an import may stand elsewhere than at the top of the module.
LATE = {
    "backends/__init__.py": "a folder is a backend, and no list names it",
    "backends/*/__init__.py": "a backend is known by name without its framework",
    "export/formats/*": "a format is known by name without the packages that read or write it",
    "export/run.py": "a graph needs onnxruntime",
    "nanochat/__init__.py": "the public names are imported when they are used",
    "nanochat/text/chat.py": "the language of chat templates is imported when a model has one",
    "nanochat/serve/traces.py": "few servers send traces, and OpenTelemetry takes long to load",
    "nanochat/data/documents.py": "few look for near-duplicates",
    "nanochat/data/sources.py": "few texts are in Parquet or on the Hub, whose packages take long to load",
    "nanochat/problems/sets.py": "few problems come from the Hub, whose packages take long to load",
    "nanochat/cli/*": "`nanochat --help` starts without the frameworks of the verbs",
    "nanochat/training/lock.py": "Windows has no locks of this kind",
    "nanochat/training/plan.py": "few runs are written for TensorBoard",
    "nanochat/lm.py": "the Hub's client is imported when it is used",
    "zoo/hub.py": "most names lead to no download, and the Hub's client takes long to load",
}


@dataclass(frozen=True)
class Import:
    """One import statement's view of one module: `module` is absolute, `name` what is taken from it."""

    module: str
    name: str
    line: int
    late: bool


@cache
def sources() -> dict[str, str]:
    """Return the text of every file of the package by its path from the root, links not followed."""
    folders = [ROOT / name for name in ("nanochat", "backends", "export", "zoo")]
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    links = tuple(f"nanochat/{name}/" for name in ("backends", "export", "zoo"))
    return {path: text for path, text in texts.items() if not path.startswith(links)}


def module_name(path: str) -> str:
    """Return the import name of the file at `path`.

    >>> module_name("backends/__init__.py"), module_name("nanochat/model.py")
    ('nanochat.backends', 'nanochat.model')
    """
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(parts if parts[0] == "nanochat" else ["nanochat", *parts])


def imports(source: str) -> Iterator[Import]:
    """Return what `source` imports, with relative imports spelled by their dots."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        late = node not in tree.body
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", node.lineno, late)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, late)
        elif isinstance(node, ast.Call) and _is_dynamic_import(node.func):
            target = node.args[0] if node.args else None
            text = target.value if isinstance(target, ast.Constant) else ""
            yield Import(str(text), "", node.lineno, late=True)


def _is_dynamic_import(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__"}


def target_module(item: Import, modules: set[str]) -> str:
    """Return the module of ours that `item` loads: ``from a import b`` means a.b if that is a module."""
    whole = f"{item.module}.{item.name}"
    return whole if whole in modules else item.module


def unit_of(module: str) -> str:
    """Return the part of `module` that rows are made of: the second, or nothing for the facade."""
    return module.removeprefix("nanochat").lstrip(".").split(".")[0]


def row_of(module: str) -> int | None:
    """Return the row of `module`; the facade, which may import everything, is above the first."""
    unit = unit_of(module)
    if not unit:
        return -1
    return next((number for number, row in enumerate(ROWS) if unit in row), None)


def violations(path: str, source: str, modules: set[str]) -> Iterator[str]:
    """Return a sentence for each rule that the file at `path` breaks."""
    here = module_name(path)
    if row_of(here) is None:
        yield f"{path}: {here} is in no row: add it to ROWS in {Path(__file__).name}"
        return
    for item in imports(source):
        where = f"{path}:{item.line}"
        top = item.module.split(".")[0]
        if item.module.startswith("."):
            yield f"{where}: relative import of {item.module}{item.name}: write it absolute"
        elif item.name == "*":
            yield f"{where}: star import from {item.module}: name what you need"
        elif top == "nanochat":
            yield from _internal_violations(where, here, item, modules)
        elif top in {"backends", "export", "zoo", "tests", "bench"}:
            yield f"{where}: import of {item.module}: the package is named nanochat.{item.module}"
        elif top in FRAMEWORKS:
            if not any(fnmatch(path, pattern) for pattern in FRAMEWORKS[top]):
                yield f"{where}: {top} may be imported only in {', '.join(FRAMEWORKS[top])}"
        elif top not in {*sys.stdlib_module_names, "numpy", ""}:
            yield f"{where}: {top} is no dependency: add it to FRAMEWORKS in {Path(__file__).name}"
        if item.late and not any(fnmatch(path, pattern) for pattern in LATE):
            yield f"{where}: import of {item.module} below the top of the module: move it up"


def _internal_violations(where: str, here: str, item: Import, modules: set[str]) -> Iterator[str]:
    target = target_module(item, modules)
    row, target_row = row_of(here) or 0, row_of(target)
    if target == "nanochat":
        # The version is defined in the facade, where packaging reads it.
        if item.name != "__version__":
            yield f"{where}: import from the facade: import {item.name or 'it'} where it is defined"
    elif target_row is None:
        yield f"{where}: {target} is in no row: add it to ROWS in {Path(__file__).name}"
    elif target_row < row:
        yield f"{where}: import of {target} points upward: move the code down, or pass it in"
    elif target_row == row and unit_of(here) != unit_of(target):
        yield f"{where}: {target} is in the same row: move what both need down"
    elif (unit_of(here), unit_of(target)) in NEVER:
        yield f"{where}: {unit_of(here)} must not know {target}: move the code down, or pass it in"


def test_every_import_follows_the_rules() -> None:
    modules = {module_name(path) for path in sources()}

    broken = [v for path, text in sources().items() for v in violations(path, text, modules)]

    assert not broken, "\n".join(broken)


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {module_name(path) for path in sources()}
    graph = {
        module_name(path): {
            target
            for item in imports(text)
            # The facade imports no module before its name is used.
            if (target := target_module(item, modules)) in modules - {"nanochat"}
        }
        for path, text in sources().items()
        if path != "nanochat/__init__.py"
    }

    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other: " + " <- ".join(error.args[1]))


def test_every_exception_from_the_rules_names_a_known_row() -> None:
    known = {"nanochat/__init__.py", *(f"nanochat/{unit}" for row in ROWS for unit in row)}
    patterns = [*LATE, *(pattern for allowed in FRAMEWORKS.values() for pattern in allowed)]

    units = {
        pattern if pattern == "nanochat/__init__.py" else _unit_of(pattern) for pattern in patterns
    }

    assert units <= known


def _unit_of(pattern: str) -> str:
    parts = pattern.removesuffix(".py").split("/")
    return f"nanochat/{parts[1] if parts[0] == 'nanochat' else parts[0]}"


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        pytest.param(
            "nanochat/ops.py", "import torch", "torch may be imported only in", id="torch"
        ),
        pytest.param(
            "backends/numba/ops.py",
            "from torch import nn",
            "torch may be imported",
            id="torch in numba",
        ),
        pytest.param(
            "backends/reference/ops.py", "import scipy.linalg", "scipy is no dependency", id="scipy"
        ),
        pytest.param(
            "nanochat/lm.py",
            "from nanochat.model import forward",
            "",
            id="a lower row",
        ),
        pytest.param(
            "backends/torch/ops.py",
            "from nanochat.model import forward",
            "backends must not know nanochat.model",
            id="a backend's architecture",
        ),
        pytest.param(
            "nanochat/model.py",
            "from nanochat.backends import get",
            "import of nanochat.backends points upward",
            id="upward",
        ),
        pytest.param(
            "nanochat/checkpoint.py",
            "from nanochat.backends import get",
            "nanochat.backends is in the same row",
            id="a neighbour",
        ),
        pytest.param(
            "nanochat/model.py",
            "def f():\n    from nanochat.lm import Model",
            "import of nanochat.lm points upward",
            id="upward, late",
        ),
        pytest.param(
            "nanochat/model.py",
            "from nanochat import lm",
            "import of nanochat.lm points upward",
            id="upward, spelled as a name",
        ),
        pytest.param(
            "zoo/hub.py", "from nanochat import Model", "from the facade", id="facade's name"
        ),
        pytest.param("zoo/hub.py", "import nanochat", "import from the facade", id="facade"),
        pytest.param("zoo/hub.py", "from nanochat import __version__", "", id="version"),
        pytest.param("zoo/hub.py", "from .catalog import find", "relative import", id="relative"),
        pytest.param("zoo/hub.py", "from os import *", "star import from os", id="star"),
        pytest.param("zoo/hub.py", "import backends", "named nanochat.backends", id="top level"),
        pytest.param(
            "zoo/catalog.py",
            "def f():\n    import json",
            "zoo/catalog.py:2: import of json below",
            id="late",
        ),
        pytest.param(
            "nanochat/model.py",
            "import importlib\nt = importlib.import_module('torch')",
            "nanochat/model.py:2: torch may be imported only",
            id="dynamic",
        ),
        pytest.param("nanochat/cli/run.py", "def f():\n    import json", "", id="late in a verb"),
        pytest.param("nanochat/new.py", "", "nanochat.new is in no row: add it to ROWS", id="new"),
    ],
)
def test_the_rules_find_what_they_forbid(path: str, source: str, message: str) -> None:
    modules = {"nanochat.model", "nanochat.lm", "nanochat.memory", "nanochat.backends"}

    found = list(violations(path, source, modules))

    assert (message in found[0]) if message else not found


@pytest.mark.parametrize("path", sorted(sources()))
def test_a_module_says_what_it_holds_and_what_is_public(path: str) -> None:
    tree = ast.parse(sources()[path])

    docstring = ast.get_docstring(tree)
    names = [
        ast.unparse(target)
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    ]

    assert docstring, f"{path} has no docstring: begin it with 'This file holds'"
    assert path.endswith("__init__.py") or docstring.startswith("This file holds")
    assert "__all__" in names, f"{path} defines no __all__"


@pytest.mark.parametrize("path", sorted(sources()))
def test_a_module_is_short_enough_to_read_in_one_sitting(path: str) -> None:
    num_lines = len(sources()[path].splitlines())

    assert num_lines < 500, f"{path} has {num_lines} lines: split it by idea"
