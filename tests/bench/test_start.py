"""A start is timed whole, and taken apart into stages."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from bench import start
from bench.start_probe import Stage

ROOT = Path(__file__).parents[2]


def test_the_stages_of_a_second_start_add_up_and_it_compiles_nothing(tmp_path: Path) -> None:
    first, second = probe(tmp_path), probe(tmp_path)

    assert set(Stage) <= set(second["stages"])
    assert min(second["stages"].values()) >= 0
    assert first["kernels"].keys() > second["kernels"].keys() == set()
    assert second["stages"][Stage.COMPILE] == 0
    assert sum(second["stages"].values()) <= second["wall"]["seconds"]


def probe(folder: Path) -> dict[str, dict[str, float]]:
    """What `bench.start_probe` prints with its compiled kernels in a folder, and how long it ran."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "bench.start_probe", str(began)],
        cwd=ROOT,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
        check=True,
        stdout=subprocess.PIPE,
    )
    values: dict[str, dict[str, float]] = json.loads(done.stdout)
    return {**values, "wall": {"seconds": time.monotonic() - began}}


def test_the_case_gives_both_totals_and_what_bounds_them() -> None:
    results = list(start.run(quick=True))

    first, second = results[:2]
    assert (first.target, second.target) == (20, 1.5)
    assert first.bound == second.ours
    assert second.ours >= (second.bound or 0) > 0
    assert start.table(results).row_count == len(results)
