"""This file holds the run of a command line in this process, or in one of its own."""

import json
import os
import signal
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
        [sys.executable, "-m", "nanochat", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=None if sys.platform == "win32" else _listen,
    )


def finish(process: subprocess.Popen[bytes]) -> Result:
    # One that is left running fails whichever test meets it next.
    with process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Result(code=process.returncode, out=out.decode(), err=err.decode())


def _listen() -> None:
    """Let a process be interrupted, which a shell forbids to those that it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
