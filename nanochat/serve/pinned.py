"""This file holds the start of a worker: it takes its cores, ends with its parent, and becomes another program.

``python -m nanochat.serve.pinned PARENT CORES COMMAND...`` with the parent's process number and cores as in "0,2,4".
What the program writes lies in the memory of the node whose cores write it first, as Linux does by default: memory
needs no policy of its own, and a full node borrows from its neighbour instead of failing.
"""

import ctypes
import os
import signal
import sys

__all__: list[str] = []

# From linux/prctl.h.
_SET_PARENT_DEATH_SIGNAL = 1


def _main(parent: str, cores: str, *command: str) -> None:
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    # It outlives `exec`.
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit("the parent has ended")
    os.execv(command[0], command)


if __name__ == "__main__":
    _main(*sys.argv[1:])
