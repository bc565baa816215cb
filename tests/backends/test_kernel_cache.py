"""Compiled kernels are kept between processes, and what is kept is never wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CONSTANT = """
from nanochat.backends.numba.runtime.compilation import inlined

@inlined
def constant():
    return 2.0
"""
KERNEL = """
from nanochat.backends.numba.runtime.compilation import kernel
from package.constant import constant

@kernel
def fill(x):
    for i in range(len(x)):
        x[i] = constant()
"""
CALL = """
import json
import numpy as np
from package.kernel import fill

x = np.zeros(3)
{between}
fill(x)
print(json.dumps([x.tolist(), sum(fill.stats.cache_hits.values())]))
"""


@dataclass(frozen=True)
class Answer:
    values: list[float]
    loaded: bool
    said: str


class Process:
    """A process of its own that calls `fill` of the package in a folder."""

    def __init__(self, folder: Path, *, between: str = "", **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CALL.format(between=between)],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "NUMBA_CACHE_DIR": str(folder / "cache"),
                # Python's own cache goes by size and time.
                "PYTHONDONTWRITEBYTECODE": "1",
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> Answer:
        out, err = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, err
        values, hits = json.loads(out)
        return Answer(values=values, loaded=hits == 1, said=err)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "constant.py").write_text(CONSTANT)
    (tmp_path / "package" / "kernel.py").write_text(KERNEL)
    return tmp_path


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.kernel"))


def test_a_second_process_loads_what_the_first_compiled(folder: Path) -> None:
    first, second = Process(folder).answer(), Process(folder).answer()

    assert first == Answer([2.0] * 3, loaded=False, said="")
    assert second == Answer([2.0] * 3, loaded=True, said="")


def test_an_edit_of_an_inlined_function_is_seen_though_size_and_time_of_its_file_stay(
    folder: Path,
) -> None:
    Process(folder).answer()
    path = folder / "package" / "constant.py"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns

    path.write_text(CONSTANT.replace("2.0", "3.0"))
    os.utime(path, ns=times)

    assert Process(folder).answer().values == [3.0] * 3


def test_processes_that_start_at_once_on_an_empty_cache_all_answer(folder: Path) -> None:
    processes = [Process(folder) for _ in range(3)]

    answers = [process.answer() for process in processes]

    assert [answer.values for answer in answers] == [[2.0] * 3] * 3
    assert [path.suffix for path in (folder / "cache").rglob("*.*")] == [".kernel"]
    assert Process(folder).answer().loaded


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="cut"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda content: content[:-1] + bytes([content[-1] ^ 1]), id="one bit"),
    ],
)
def test_a_damaged_file_is_compiled_anew_and_replaced(
    folder: Path, damage: Callable[[bytes], bytes]
) -> None:
    Process(folder).answer()
    (path,) = kept(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))

    after = Process(folder).answer()

    assert after == Answer([2.0] * 3, loaded=False, said="")
    assert Process(folder).answer().loaded


def test_a_folder_that_cannot_be_read_as_a_file_is_no_kernel(folder: Path) -> None:
    Process(folder).answer()
    (path,) = kept(folder)
    path.unlink()
    path.mkdir()

    answer = Process(folder).answer()

    assert answer.values == [2.0] * 3
    assert "compiled kernels cannot be kept in" in answer.said


def test_without_any_folder_to_write_to_kernels_are_compiled_and_the_user_is_told(
    folder: Path,
) -> None:
    # Not by permissions, which a superuser does not have to respect.
    blocked = folder / "file"
    blocked.touch()
    (folder / "package" / "__pycache__").touch()

    answer = Process(
        folder, NUMBA_CACHE_DIR=str(blocked), XDG_CACHE_HOME=str(blocked), HOME=str(blocked)
    ).answer()

    assert answer.values == [2.0] * 3
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in answer.said


def test_a_folder_that_fills_up_or_goes_away_stops_no_kernel(folder: Path) -> None:
    between = "import shutil; shutil.rmtree('cache'); open('cache', 'w').close()"

    answer = Process(folder, between=between).answer()

    assert answer.values == [2.0] * 3
    assert "compiled kernels cannot be kept in" in answer.said


ENTRIES = """
import json
import numpy as np
from nanochat.backends.numba.runtime import intrinsics, threads
from package.kernel import fill

written = []
write = intrinsics._written
intrinsics._written = lambda *given: written.append(given) or write(*given)
x = np.zeros(3)
threads.run_program(threads.Program([threads.Call(fill, (x,), 3, 0.0)] * 2, threads=1))
print(json.dumps([x.tolist(), len(written)]))
"""


def test_what_calls_kernels_in_lists_is_kept_too(folder: Path) -> None:
    kernel = folder / "package" / "kernel.py"
    kernel.write_text(KERNEL.replace("fill(x):", "fill(x, first, last):"))

    answers = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", ENTRIES],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder / "cache")},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(json.loads(done.stdout))

    assert answers == [[[2.0] * 3, 1], [[2.0] * 3, 0]]
