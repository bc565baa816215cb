"""No file of a public format does more than raise: bytes of headers and blocks are changed at random, many times.

With ``--long``, a hundred thousand files for each kind of model.
"""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanochat.blocks.plain import plain
from nanochat.errors import NanochatError
from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.foreign.read import load_foreign_gguf
from nanochat.export.gguf.parts import read_whole
from nanochat.weights import map_leaves
from tests.export import test_foreign_i2_s as bitnet
from tests.export.allocations import BESIDE, allocations_limited
from tests.export.foreign_ggufs import Case
from tests.export.foreign_ggufs import write as write_case
from tests.export.public_ggufs import make_ternary, qwen35_model, write_qwen35
from tests.export.test_foreign_rotary import written as write_rotary
from tests.export.test_gguf_parts import write_parts
from tests.export.test_public_ggufs import rotated_names

FEW, MANY = 150, 100_000
# A text takes up to seven times its bytes while it is decoded, more than anything else of a file.
_TIMES = 8


def qwen35(path: Path, kind: str, *, grouped: bool = False, **changes: Any) -> Path:
    model = qwen35_model()
    make_ternary(model, zeros=kind != "Q1_0")
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
    "qwen35 Q1_0": lambda path: qwen35(path, "Q1_0"),
    "qwen35 legacy Q2_0": lambda path: qwen35(path, "legacy Q2_0"),
    "qwen35 Q2_0, rotated": lambda path: qwen35(path, "Q2_0", grouped=True, **ROTATED),
    "minicpm": lambda path: write_rotary(path, "minicpm, long"),
    "bitnet.cpp": lambda path: bitnet.write(path, bitnet.random_model()),
    "qwen3 TQ1_0": lambda path: write_case(
        path, Case(architecture="qwen3", kind="TQ1_0", table="Q6_K")
    ),
    "qwen3 TQ2_0 in two parts": lambda path: write_parts(path.parent, most=12),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_changed_files_are_read_or_refused(
    write: Callable[[Path], object], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    count = MANY if pytestconfig.getoption("--long") else FEW
    write(tmp_path / "x.gguf")
    files = sorted(tmp_path.iterdir())
    contents = [np.fromfile(file, np.uint8) for file in files]
    headers = [_header(file) for file in files]
    limit = _TIMES * sum(map(len, contents)) + BESIDE
    generator = np.random.default_rng(0)
    logging.disable(logging.WARNING)
    refused = 0
    try:
        for _ in range(count):
            number = generator.integers(len(files))
            changed = _damaged(contents[number], headers[number], generator)
            changed.tofile(files[number])
            refused += _is_refused(files[0], limit=limit)
            if len(files) > 1:
                contents[number].tofile(files[number])
    finally:
        logging.disable(logging.NOTSET)
    assert 0 < refused < count


def _damaged(
    data: NDArray[np.uint8], header: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """The same with some bytes that are random, most of them in the header, or cut."""
    changed = data.copy()
    places = generator.integers(0, header, generator.integers(1, 6))
    if generator.random() < 0.3:
        places = generator.integers(header, len(data), 3)
    changed[places] = generator.integers(0, 256, len(places))
    return changed[: generator.integers(0, len(data))] if generator.random() < 0.05 else changed


def _header(path: Path) -> int:
    """Where the bytes of the first tensor begin."""
    tensors = read_gguf(path).tensors.values()
    return path.stat().st_size - sum(tensor.data.size + tensor.tail.size for tensor in tensors)


def _is_refused(path: Path, *, limit: int) -> bool:
    try:
        with allocations_limited(limit):
            _, weights, _ = load_foreign_gguf(path, read_whole(path))
            map_leaves(lambda _, leaf: plain(leaf), weights)
    except NanochatError:
        return True
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_allocations_beyond_the_limit_fail() -> None:
    # More than malloc can have kept of what earlier tests gave back.
    with pytest.raises(MemoryError), allocations_limited(BESIDE):
        np.empty(2**32, np.uint8)
