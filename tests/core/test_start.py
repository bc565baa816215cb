import json
import subprocess
import sys
from pathlib import Path

import pytest

import nanochat
from nanochat.config import ModelConfig
from nanochat.errors import ShapeError

ROOT = Path(__file__).parents[2]


def answer(program: str) -> object:
    """Return what `program` prints as JSON in an interpreter of its own."""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return json.loads(run.stdout)


def test_importing_nanochat_loads_no_dependency() -> None:
    program = (
        "import sys, json; before = set(sys.modules); import nanochat;"
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )

    loaded = answer(program)

    assert isinstance(loaded, list)
    assert set(loaded) - sys.stdlib_module_names == {"nanochat"}


def test_importing_nanochat_takes_under_150_milliseconds() -> None:
    program = (
        "import numpy, time; start = time.process_time(); import nanochat;"
        "print(time.process_time() - start)"
    )

    # The fastest of five, of the processor: other processes may be using it, and its caches.
    seconds = [answer(program) for _ in range(5)]

    assert min(float(str(second)) for second in seconds) < 0.15


def test_a_public_name_is_the_object_of_its_module() -> None:
    assert nanochat.ModelConfig is ModelConfig
    assert nanochat.errors.ShapeError is ShapeError


def test_every_public_name_can_be_used_and_is_listed() -> None:
    assert all(getattr(nanochat, name) is not None for name in nanochat.__all__)
    assert set(nanochat.__all__) <= set(dir(nanochat))


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="no attribute 'modle'"):
        nanochat.modle  # noqa: B018  # looking the name up is the act
