"""This file holds the run of a command line in this process, or in one of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GREEDY", "ROOT", "Result", "Run", "finish", "start"]

ROOT = Path(__file__).parents[2]
GREEDY = ("--temperature", "0", "--backend", "reference")


@dataclass(frozen=True, kw_only=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def last_json(self) -> dict[str, object]:
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value


Run = Callable[..., Result]


def start(*arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "nanochat.cli", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> Result:
    out, err = process.communicate(timeout=60)
    return Result(code=process.returncode, out=out.decode(), err=err.decode())
