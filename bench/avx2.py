"""This file runs a part of a benchmark in a process whose compiler knows no AVX-512."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import llvmlite.binding

from bench.result import Result

__all__ = ["with_avx2"]


def with_avx2(module: str, *arguments: str) -> Iterator[Result]:
    """What a module prints as JSON lines, run with AVX2; nothing on a CPU without AVX-512, where it is run anyway."""
    there = {name for name, has in llvmlite.binding.get_host_cpu_features().items() if has}
    if "avx2" not in there or "avx512f" not in there:
        return
    old = sorted(f"+{name}" for name in there if not name.startswith(("avx512", "avxvnni", "amx")))
    environment = os.environ | {
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": ",".join(old),
        "NANOCHAT_ISA": "avx2",
    }
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    for line in done.stdout.splitlines():
        yield Result(**json.loads(line))
