"""This file holds exported pages to test, and what a person does with one."""

import json
from pathlib import Path

from bench.peers.chromium import Page
from nanochat.bundle import Bundle
from nanochat.export.formats import load
from nanochat.export.web.write import write_web
from nanochat.proof.manifest import NAME, write_manifest

# Loads sooner, because nothing else is tried.
QUICK = "?device=wasm&weights=float32&threads=1"
BUSY = "document.getElementById('generate').disabled"


def tiny() -> Bundle:
    """The model that ships with the package."""
    path = Path(__file__).parents[2] / "zoo" / "weights" / "nanochat-tiny"
    return load(path, name="nanochat-tiny", licence="MIT")


def write_page(folder: Path, source: Bundle) -> Path:
    """Write a page, complete."""
    folder.mkdir()
    write_web(folder, source)
    write_manifest(folder, source, kind="web")
    return folder


def copy_page(
    folder: Path, page: Path, source: Bundle, changes: dict[str, bytes], *, known: bool
) -> Path:
    """A page of which some files have other contents; `known` to its manifest, or not."""
    for path in page.rglob("*"):
        name = path.relative_to(page).as_posix()
        if path.is_file() and name not in changes and not (known and name == NAME):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    for name, content in changes.items():
        (folder / name).write_bytes(content)
    if known:
        write_manifest(folder, source, kind="web")
    return folder


def begin(page: Page, prompt: str, **fields: float) -> None:
    """Fill in fields, type a prompt, and press the button."""
    for field, value in fields.items():
        page.evaluate(f"document.getElementById('{field.replace('_', '-')}').value = {value}")
    page.evaluate("document.getElementById('prompt').value = ''")
    page.evaluate("document.getElementById('prompt').focus()")
    page.insert(prompt)
    page.evaluate("document.getElementById('generate').click()")


def write(page: Page, prompt: str, **fields: float) -> str:
    """Let the page continue a prompt to the end, and return what stands below the heading then."""
    begin(page, prompt, **fields)
    page.wait(f"!{BUSY}", seconds=60)
    return shown(page, "log")


def shown(page: Page, element: str) -> str:
    """Text of an element of the page."""
    text: str = page.evaluate(f"document.getElementById({json.dumps(element)}).textContent")
    return text
