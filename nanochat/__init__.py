"""This file holds the public names of nanochat, each imported when it is first used.

``import nanochat`` loads the standard library only, so that programs which merely mention the package start
at once. The first use of a name imports the module that defines it (PEP 562).

Examples
--------
>>> import nanochat
>>> issubclass(nanochat.errors.ShapeError, ValueError)
True
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanochat import errors
    from nanochat.config import ModelConfig
    from nanochat.lm import Model, from_pretrained
    from nanochat.text.tokenizer import Tokenizer
    from nanochat.training.plan import train

__all__ = ["Model", "ModelConfig", "Tokenizer", "__version__", "errors", "from_pretrained", "train"]

__version__ = "0.1.0"

_HOMES = {
    "Model": "nanochat.lm",
    "ModelConfig": "nanochat.config",
    "Tokenizer": "nanochat.text.tokenizer",
    "from_pretrained": "nanochat.lm",
    "train": "nanochat.training.plan",
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("nanochat.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'nanochat' has no attribute {name!r}: see nanochat.__all__")
    try:
        value: object = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if name != "train":
            raise
        from nanochat import errors

        raise errors.BackendError(
            f"nanochat.train needs the package {error.name}: {errors.how_to_install(name)}"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
