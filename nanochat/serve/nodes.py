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
    >>> divide([[0, 1, 2, 3]], 2), divide([[0], [1, 2]], 3)
    ([[0, 1], [2, 3]], [[0], [1], [2]])
    """
    num_cores = sum(map(len, nodes))
    if workers > num_cores:
        raise InputError(
            f"workers={workers} for {num_cores} cores: pass {len(nodes)}, one for each node, or at most {num_cores}"
        )
    if workers <= len(nodes):
        return [[core for node in nodes[n::workers] for core in node] for n in range(workers)]
    shares = [1] * len(nodes)
    while sum(shares) < workers:
        # One more for the node whose workers have most cores.
        widest = max(range(len(nodes)), key=lambda n: len(nodes[n]) / shares[n])
        shares[widest] += 1
    return [
        list(node[len(node) * part // share : len(node) * (part + 1) // share])
        for node, share in zip(nodes, shares, strict=True)
        for part in range(share)
    ]


def _first_sibling(core: int, cpus: Path) -> int:
    path = cpus / f"cpu{core}" / "topology" / "thread_siblings_list"
    return min(read_list(path.read_text())) if path.exists() else core
