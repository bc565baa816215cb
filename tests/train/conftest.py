"""This file holds what training leaves as it was: the number of torch's threads."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def threads_of_torch() -> Iterator[None]:
    """A trainer sets the number for its whole process."""
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)
