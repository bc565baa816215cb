"""This file holds what a backend says of itself before it is loaded: what it needs, and when and how it is taken."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nanochat.ops import Ops

__all__ = ["Backend"]


def _nothing() -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The `BACKEND` of a folder here, which gives it its name; see `nanochat.backends.discover`.

    It is read on every machine, so neither it nor the module that holds it imports a framework.

    Parameters
    ----------
    module : str
        What must be importable for the backend to run, such as "torch".
    fix : str
        How to get that, such as a command of pip.
    libraries : tuple of str
        The modules whose versions say what computes.
    takes_threads : bool
        Whether a caller may choose the threads that share an operation.
    rank : int
        Who is asked first, the lowest, when "auto" looks for a backend.
    suits : function
        Why "auto" takes it on this machine, asked where `module` is there; empty if it does not.
    missed : function
        What "auto" says where it passes the backend over because `module` is not there; empty if it is not missed.
    load : function or None
        Gives its operations, with `num_threads` where they were chosen; the framework is imported there and nowhere
        before. None is a runtime of whole graphs, which has no operations.
    """

    module: str
    fix: str = ""
    libraries: tuple[str, ...] = ()
    takes_threads: bool = False
    rank: int = 100
    suits: Callable[[], str] = _nothing
    missed: Callable[[], str] = _nothing
    load: Callable[..., Ops[Any, Any, Any]] | None
