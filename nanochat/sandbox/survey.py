"""This file holds the survey of a machine: which kinds of sandbox hold on it, and why others do not."""

import sys
from typing import NamedTuple

from nanochat.errors import SandboxError
from nanochat.sandbox.layers import Kind
from nanochat.sandbox.sandbox import Sandbox

__all__ = ["Found", "survey"]


class Found(NamedTuple):
    """A kind of sandbox, whether it holds here, and of what it consists, or what is missing and would mend it."""

    name: Kind
    ready: bool
    detail: str


def survey() -> tuple[Found, ...]:
    """Try every kind that this system can have, best first, in a tenth of a second each."""
    kinds: tuple[Kind, ...] = (
        ("bubblewrap", "landlock") if sys.platform == "linux" else ("seatbelt",)
    )
    return tuple(_try(kind) for kind in kinds)


def _try(kind: Kind) -> Found:
    try:
        with Sandbox(kind) as sandbox:
            return Found(kind, True, ", ".join(sandbox.layers))
    except SandboxError as error:
        return Found(kind, False, str(error))
