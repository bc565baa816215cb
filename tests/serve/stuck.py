"""Servers that import this have a model that never is loaded; see `tests.serve.processes.started`."""

import time
from typing import Any

from nanochat.lm import Model


def _never(*_: Any, **__: Any) -> Model:
    while True:
        time.sleep(60)


Model.from_pretrained = _never  # type: ignore[method-assign]  # which is the point of it
