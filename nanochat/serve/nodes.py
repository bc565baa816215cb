"""This file holds the nodes of a machine, which are cores with memory of their own, and how workers share them."""

import os
from collections.abc import Sequence
from pathlib import Path

from nanochat.errors import InputError

__all__ = ["divide", "numa_nodes"]

_NODES, _CPUS = Path("/sys/devices/system/node"), Path("/sys/devices/system/cpu")


def numa_nodes(nodes: Path = _NODES, cpus: Path = _CPUS) -> list[list[int]]:
    """The cores of each node that this process may use, those that are one physical core side by side."""
    allowed = os.sched_getaffinity(0)
    found = []
    for path in sorted(nodes.glob("node[0-9]*"), key=lambda path: int(path.name[4:])):
        cores = read_list((path / "cpulist").read_text()) & allowed
        if cores:
            found.append(sorted(cores, key=lambda core: (_first_sibling(core, cpus), core)))
    return found or [sorted(allowed)]


def read_list(text: str) -> set[int]:
    """The numbers of a list as Linux writes it.

    >>> sorted(read_list("0-2,8"))
    [0, 1, 2, 8]
    """
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def divide(nodes: Sequence[Sequence[int]], workers: int) -> list[list[int]]:
    """The cores of each worker: of whole nodes if there are enough of these, else of a part of one.

    Raises
    ------
    InputError
        If there are more workers than cores.

    Examples
    --------
    >>> divide([[0, 1], [2, 3]], 2), divide([[0, 1], [2, 3]], 1)
    ([[0, 1], [2, 3]], [[0, 1, 2, 3]])
    >>> divide([[0, 1, 2, 3]], 2)
    [[0, 1], [2, 3]]
    """
    num_cores = sum(map(len, nodes))
    found: list[list[int]] = []
    for number in range(min(workers, len(nodes))):
        cores = [core for node in nodes[number::workers] for core in node]
        # As many workers share it as have this place.
        share = len(range(number, workers, len(nodes)))
        found += [
            cores[len(cores) * i // share : len(cores) * (i + 1) // share] for i in range(share)
        ]
    if not all(found):
        raise InputError(
            f"workers={workers} for {num_cores} cores: pass {len(nodes)}, one for each node, or as many as cores"
        )
    return found


def _first_sibling(core: int, cpus: Path) -> int:
    path = cpus / f"cpu{core}" / "topology" / "thread_siblings_list"
    return min(read_list(path.read_text())) if path.exists() else core
