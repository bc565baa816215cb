"""This file holds what the tests of a publication share: where it goes, and how to make one quickly."""

from pathlib import Path

from nanochat.bundle import Bundle
from nanochat.publish.options import PushOptions
from nanochat.publish.push import Published, push_model

__all__ = ["QUICK", "REPO", "content", "push"]

REPO = "org/name"
QUICK = PushOptions(backends=["reference"], prompt="fn main() {")


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by its path in it."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def push(model: Path | Bundle, options: PushOptions = QUICK) -> Published:
    """Publish a model in one repository."""
    (published,) = push_model(model, REPO, options)
    return published
