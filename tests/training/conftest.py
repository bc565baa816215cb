"""This file holds data to train on, and what training leaves as it was: the number of torch's threads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nanochat.data.prepare import prepare


@pytest.fixture(scope="module", autouse=True)
def threads_of_torch() -> Iterator[None]:
    """A trainer sets the number for its whole process."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty small files of repetitive code."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [f"fn f{i}(x: u32) -> u32 {{ x * {i} + f{i // 2}(x) }}\n" for i in range(400)]
    for i in range(20):
        (folder / f"{i}.rs").write_text("".join(lines[i * 20 :] + lines[: i * 20]))
    prepare([str(folder)], folder / "tokens", 300, held_out=0.1)
    return folder / "tokens"
