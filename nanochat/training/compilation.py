"""This file holds `torch.compile`, and the one line that is left of it where it cannot run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from nanochat.errors import TrainingError

__all__ = ["compiled", "compiling"]

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")


def compiled(function: Callable[Inputs, Result]) -> Callable[Inputs, Result]:
    """The function through ``torch.compile``, which does its work in the first calls: make them inside `compiling`."""
    try:
        return torch.compile(function)
    except RuntimeError as error:
        # Of a version of Python that it does not know.
        raise _refusal(error) from error


@contextmanager
def compiling() -> Iterator[None]:
    """Report that `torch.compile` fails, usually for want of a compiler, as something that its user can mend."""
    try:
        yield
    except RuntimeError as error:
        # By name: importing the classes takes a second and a half, which a run without them need not wait for.
        if not type(error).__module__.startswith(("torch._dynamo.", "torch._inductor.")):
            raise
        raise _refusal(error) from error


def _refusal(error: RuntimeError) -> TrainingError:
    lines = str(error).splitlines()
    # Behind the command, a compiler's output; the first line does for everything else.
    reason = next((line for line in lines if "error: " in line), lines[0])
    return TrainingError(
        f"torch.compile cannot run here ({reason.strip()}): install a C++ compiler, such as g++, with Python's "
        "headers, or pass --no-compile (compile_model=False in Python), which starts at once and trains several times "
        "more slowly"
    )
