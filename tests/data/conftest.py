"""This file holds a corpus of random words, prepared."""

from pathlib import Path

import numpy as np
import pytest

from nanochat.data.prepare import prepare
from tests.data.streams import TOKENIZER, WORDS


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty files of random words in two levels of directories."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("corpus")
    for index in range(60):
        path = root / f"crate{index % 5}" / f"file{index}.rs"
        path.parent.mkdir(exist_ok=True)
        path.write_text(" ".join(rng.choice(WORDS, size=50 + index)))
    return root


@pytest.fixture(scope="module")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of the corpus, in shards of 1,009 tokens."""
    output = tmp_path_factory.mktemp("data") / "prepared"
    prepare([corpus / "**/*.rs"], output, TOKENIZER, held_out=0.2, shard_tokens=1009)
    return output


@pytest.fixture
def copy(corpus: Path, tmp_path: Path) -> Path:
    """Prepared data that a test may damage."""
    prepare([corpus], tmp_path / "copy", TOKENIZER, held_out=0.2)
    return tmp_path / "copy"
