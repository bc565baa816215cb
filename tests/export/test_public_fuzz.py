"""No file of a public format does more than raise: bytes of headers and blocks are changed at random, many times.

With ``--long``, a hundred thousand files for each kind of model.
"""

import contextlib
import logging
import re
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nanochat.blocks.plain import plain
from nanochat.errors import NanochatError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.weights import map_leaves
from tests.export import test_foreign_i2_s as bitnet
from tests.export.foreign_ggufs import ROWS, Case
from tests.export.foreign_ggufs import write as write_case
from tests.export.foreign_models import build
from tests.export.public_ggufs import make_ternary, qwen35_model, write_qwen35
from tests.export.test_foreign_rotary import written as write_rotary
from tests.export.test_public_ggufs import rotated_names

FEW, MANY = 150, 100_000
# What the largest shapes that a configuration may have take, before they are compared with the tensors'.
_SHAPES = 2**27


def qwen35(path: Path, kind: str, *, grouped: bool = False, **changes: Any) -> Path:
    model = qwen35_model()
    make_ternary(model)
    return write_qwen35(path, model, kind, changes=changes or None, grouped=grouped)


ROTATED = {
    "prism.hadamard.version": 1,
    "prism.hadamard.block_size": 256,
    "prism.hadamard.transform": "normalized-sylvester-walsh-hadamard",
    "prism.hadamard.axis": "input-last-dimension",
    "prism.hadamard.sign_mode": "identity",
    "prism.hadamard.sign_widths": [256, 512, 768],
    "prism.hadamard.weight_names": [n for n in rotated_names() if n != "token_embd.weight"],
    "prism.hadamard.inverse_weight_names": ["token_embd.weight"],
    "prism.hadamard.gdn_v_grouped": True,
}
WRITERS: dict[str, Callable[[Path], object]] = {
    "qwen35 PQ2_0": lambda path: qwen35(path, "PQ2_0"),
    "qwen35 PTQ1_0": lambda path: qwen35(path, "PTQ1_0"),
    "qwen35 Q2_0, rotated": lambda path: qwen35(path, "Q2_0", grouped=True, **ROTATED),
    "minicpm": lambda path: write_rotary(path, "minicpm, long"),
    "bitnet.cpp": lambda path: bitnet.write(
        path,
        build(
            "autobitlinear",
            vocabulary=ROWS,
            hidden_size=256,
            intermediate_size=384,
            num_attention_heads=8,
            num_key_value_heads=2,
        ),
    ),
    "qwen3 TQ1_0": lambda path: write_case(
        path, Case(architecture="qwen3", kind="TQ1_0", table="Q6_K")
    ),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_changed_files_are_read_or_refused(
    write: Callable[[Path], object], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    count = MANY if pytestconfig.getoption("--long") else FEW
    path = tmp_path / "x.gguf"
    write(path)
    data = np.fromfile(path, np.uint8)
    header = _header(path)
    generator = np.random.default_rng(0)
    logging.disable(logging.WARNING)
    refused = 0
    try:
        for _ in range(count):
            changed = data.copy()
            places = generator.integers(0, header, generator.integers(1, 6))
            if generator.random() < 0.3:
                places = generator.integers(header, len(data), 3)
            changed[places] = generator.integers(0, 256, len(places))
            if generator.random() < 0.05:
                changed = changed[: generator.integers(0, len(data))]
            changed.tofile(path)
            refused += _is_refused(path, limit=2 * len(data) + _SHAPES)
    finally:
        logging.disable(logging.NOTSET)
    assert 0 < refused < count


def _header(path: Path) -> int:
    """Where the bytes of the first tensor begin."""
    tensors = read_gguf(path).tensors.values()
    return path.stat().st_size - sum(tensor.data.size + tensor.tail.size for tensor in tensors)


def _is_refused(path: Path, *, limit: int) -> bool:
    try:
        with allocations_limited(limit):
            _, weights, _ = load_foreign_gguf(path, read_gguf(path))
            map_leaves(lambda _, leaf: plain(leaf), weights)
    except NanochatError:
        return True
    return False


@contextlib.contextmanager
def allocations_limited(num_bytes: int) -> Iterator[None]:
    """Let this process take so many bytes more: beyond that the system gives it none, and ``MemoryError`` is raised.

    Tracing allocations instead takes three times as long as reading the files.
    """
    taken = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert taken is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1024 * int(taken[1]) + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def test_allocations_beyond_the_limit_fail() -> None:
    with pytest.raises(MemoryError), allocations_limited(_SHAPES):
        np.empty(2 * _SHAPES, np.uint8)
