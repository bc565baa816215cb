"""What `nanochat.memory` says that a model needs is what it takes."""

import sys
from pathlib import Path

import pytest

from bench.memory import can_run, measure, model_peak, write_random_model
from nanochat import backends
from nanochat.memory import needed_bytes
from nanochat.presets import preset

CONFIG = preset("nano-125m")
TOKENS = 64

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process has")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "nano-125m"
    write_random_model(path, CONFIG)
    return path


@pytest.mark.parametrize("backend", [name for name in backends.BACKENDS if can_run(name)])
def test_a_model_takes_what_is_said(directory: Path, backend: str) -> None:
    estimate = needed_bytes(CONFIG, backend, context=TOKENS)
    if backend == "numba":
        # The first start may compile, which takes memory of its own.
        measure(directory, backend, TOKENS)

    stages = measure(directory, backend, TOKENS)

    assert 0.7 <= model_peak(stages) / estimate <= 1.15
