import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OUTSIDE = ("backends", "export", "zoo")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def folders_with_code() -> set[Path]:
    found = {path.parent for name in ("nanochat", *OUTSIDE) for path in (ROOT / name).rglob("*.py")}
    relative = {path.relative_to(ROOT) for path in found}
    return {path for path in relative if path.parts[:2] not in {("nanochat", n) for n in OUTSIDE}}


def test_the_listed_packages_are_those_of_the_tree(project: dict[str, Any]) -> None:
    names = {".".join(path.parts) for path in folders_with_code()}
    expected = {name if name.startswith("nanochat") else f"nanochat.{name}" for name in names}

    listed = project["tool"]["setuptools"]["packages"]

    assert listed == sorted(expected), "correct [tool.setuptools] packages in pyproject.toml"


def test_every_folder_with_code_is_a_regular_package() -> None:
    without = [path for path in folders_with_code() if not (ROOT / path / "__init__.py").exists()]

    assert without == []


@pytest.mark.parametrize(
    "folder",
    [
        "zoo/models",
        "zoo/weights",
        "export/web/page",
        "nanochat/problems/own",
        "nanochat/serve/page",
        "nanochat/training/report_page",
    ],
)
def test_every_file_of_data_is_shipped(project: dict[str, Any], folder: str) -> None:
    package = folder.rpartition("/")[0]
    name = package.replace("/", ".")
    name = name if name.startswith("nanochat") else f"nanochat.{name}"
    patterns = project["tool"]["setuptools"]["package-data"][name]
    files = [path for path in (ROOT / folder).rglob("*") if path.is_file()]

    names = [path.relative_to(ROOT / package).as_posix() for path in files]

    assert [n for n in names if not any(fnmatch(n, p) for p in patterns)] == []


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_link_in_the_package_leads_to_its_folder(name: str) -> None:
    link = ROOT / "nanochat" / name

    assert link.resolve() == ROOT / name


def test_every_dependency_is_pinned_for_the_tests(project: dict[str, Any]) -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pinned = set(re.findall(r"^([a-z0-9-]+)==", pins, re.MULTILINE))
    table = project["project"]
    extras = [
        item
        for name in (
            "dev",
            "eval",
            "long",
            "mlx",
            "onnx",
            "otel",
            "ray",
            "runtimes",
            "tensorboard",
            "train",
        )
        for item in table["optional-dependencies"][name]
    ]

    wanted = {re.split(r"[\[<>=; ]", item)[0] for item in [*table["dependencies"], *extras]}

    assert wanted - {"nanochat-ternary"} <= pinned
