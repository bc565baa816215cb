"""This file holds the canary: a program that tries what no job may do, run to see which layers hold here.

It is run by Python itself, as a job. What it can do although it should not is written to its output, a word for each.
"""

import sys
from pathlib import Path

from nanochat.sandbox.job import SYSTEM_LIBRARIES, Job, Limits

__all__ = ["ATTEMPTS", "PYTHON_FILES", "canary"]

# Python's own library, and the folder of its shared library.
PYTHON_FILES = tuple(
    str(path)
    for path in (Path(sys.base_prefix, "lib"), Path(sys.base_prefix, "lib64"))
    if path.exists()
)

# What is tried, and how it is called if it succeeds. `secret`, `folder`, `port` and `process` are put before it.
_ATTEMPTS = {
    "read a file": "open(secret).read()",
    "write a file": "open(folder + '/written', 'w').close()",
    "change a file's mode": "os.chmod(secret, 0o777)",
    "open a socket": "socket.socket(socket.AF_UNIX)",
    "connect to this machine": "socket.create_connection(('127.0.0.1', port), 1)",
    "signal a process": "os.kill(process, 0)",
    "start a process": "os.fork() or os._exit(0)",
    "map memory without a name": "os.memfd_create('m')",
}
ATTEMPTS = tuple(_ATTEMPTS)

_PROGRAM = """
import os, socket, sys
secret, folder, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for name, attempt in {attempts!r}.items():
    try:
        eval(attempt)
    except OSError:
        continue
    print(name, flush=True)
print("done", flush=True)
"""


def canary(*, secret: str, folder: str, port: int, process: int) -> Job:
    """The job that tries everything.

    Parameters
    ----------
    secret : str
        A file that may not be read.
    folder : str
        A folder in which nothing may be written.
    port : int
        Of this machine's loopback, at which somebody listens.
    process : int
        One of the same user, outside.
    """
    program = _PROGRAM.format(attempts=_ATTEMPTS)
    arguments = (secret, folder, str(port), str(process))
    python = str(Path(sys.executable).resolve())
    return Job(
        command=(python, "-I", "-S", "-c", program, *arguments),
        readable=(*SYSTEM_LIBRARIES, *PYTHON_FILES),
        limits=Limits(cpu_seconds=5, wall_seconds=60),
    )
