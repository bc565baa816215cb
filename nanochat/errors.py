"""This file holds every exception that the package raises on purpose, and words that their messages share.

Each message names the offending value, the rule that it breaks, and the fix. Classes that stand for a bad
value are also a `ValueError`, so that callers who know nothing of this package can catch them.
"""

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path

__all__ = [
    "BackendError",
    "ConfigError",
    "ContextLengthError",
    "DataError",
    "FormatError",
    "InputError",
    "MemoryShortageError",
    "ModelNotFoundError",
    "NanochatError",
    "NumericError",
    "SandboxError",
    "SaveError",
    "ShapeError",
    "TrainingError",
    "VersionError",
    "WriterError",
    "counted",
    "did_you_mean",
    "how_to_install",
    "nearest",
]


class NanochatError(Exception):
    """The root of all errors that a user can cause and fix."""


class ConfigError(NanochatError, ValueError):
    """A configuration that cannot work."""


class ShapeError(NanochatError, ValueError):
    """Arrays whose shapes disagree with each other or with the configuration."""


class NumericError(NanochatError, ValueError):
    """Infinities, NaN or ternary codes outside {-1, 0, 1}."""


class InputError(NanochatError, ValueError):
    """An argument or a prompt that the call cannot serve."""


class ContextLengthError(InputError):
    """More tokens than the model's context holds."""


class FormatError(NanochatError, ValueError):
    """A file that is truncated, corrupt, mislabelled or hostile."""


class VersionError(FormatError):
    """A file written by a newer version of this package."""


class SaveError(NanochatError, OSError):
    """A file that could not be written; what stood there before is untouched."""


class BackendError(NanochatError, RuntimeError):
    """A backend that is unknown or cannot run on this machine."""


class SandboxError(NanochatError, RuntimeError):
    """Programs that nobody trusts cannot be kept apart from this machine."""


class MemoryShortageError(NanochatError, MemoryError):
    """A model for which there is not enough memory; none was taken."""


class ModelNotFoundError(NanochatError, LookupError):
    """A model name for which no weights can be found."""


class DataError(NanochatError, ValueError):
    """Training data that is missing or unusable."""


class TrainingError(NanochatError, RuntimeError):
    """A training run that cannot start, continue or resume."""


class WriterError(NanochatError, RuntimeError):
    """A model at an address that cannot be asked, or whose answer cannot be read."""


def counted(number: int, noun: str) -> str:
    """A number of things, in words for people.

    >>> counted(1, "file"), counted(2048, "token")
    ('1 file', '2,048 tokens')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def how_to_install(extra: str) -> str:
    """The command that brings what an extra needs, in a checkout or not, and what to know of it before."""
    root = Path(__file__).parents[1]
    place = f"-e '{root}" if (root / "pyproject.toml").is_file() else "'nanochat-ternary"
    command = f"pip install {place}[{extra}]'"
    if extra in ("torch", "train") and sys.platform == "linux":
        cpu = "pip install torch --index-url https://download.pytorch.org/whl/cpu"
        return f"{command} (a torch for GPUs of several GB; where there is none, first {cpu})"
    return command


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A question for the end of a message about a word that is not known; empty if none is near.

    >>> did_you_mean("max_token", ["max_tokens", "top_k"])
    ' (did you mean max_tokens?)'
    """
    near = nearest(str(word), known)
    return f" (did you mean {near}?)" if near else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that resembles another one most; empty if none does."""
    return next(iter(difflib.get_close_matches(word, list(known), 1)), "")
