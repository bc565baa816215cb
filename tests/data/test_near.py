"""What resembles an earlier text is left out, in whichever split, and nothing else is."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from nanochat.data.documents import documents
from nanochat.data.near import NearDuplicates, shingles, signature
from nanochat.data.prepare import prepare
from nanochat.data.shards import Shards
from nanochat.errors import InputError
from tests.data.streams import TOKENIZER

WORDS = [f"w{number}" for number in range(2000)]


def changed(words: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """The words with so many others among them."""
    found = [*words]
    for place in rng.choice(len(words), count, replace=False):
        found[place] = f"x{rng.integers(2**40)}"
    return found


def resemblance(first: str, second: str) -> float:
    a, b = set(shingles(first)), set(shingles(second))
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("count", [0, 2, 4, 16, 40, 100])
def test_texts_are_told_by_their_resemblance(count: int) -> None:
    rng = np.random.default_rng(count)
    words = list(rng.choice(WORDS, 400))
    first, second = " ".join(words), " ".join(changed(words, count, rng))
    met = NearDuplicates(0.8)
    met.add(signature(first))

    is_new = met.add(signature(second))

    # The estimate is off by a tenth at most once in a hundred times.
    assert abs(resemblance(first, second) - 0.8) > 0.1
    assert is_new == (resemblance(first, second) < 0.8)


def test_no_text_is_forgotten_among_many() -> None:
    rng = np.random.default_rng(0)
    texts = [list(rng.choice(WORDS, 100)) for _ in range(1000)]
    met = NearDuplicates(0.8)

    assert all(met.add(signature(" ".join(words))) for words in texts)
    assert not any(met.add(signature(" ".join(changed(words, 1, rng)))) for words in texts)


def test_short_texts_are_compared_as_a_whole() -> None:
    met = NearDuplicates(0.8)

    assert met.add(signature("a b c"))
    assert met.add(signature("a b d"))
    assert not met.add(signature("a  b c"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Forty texts, each followed by one that resembles it."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        words = list(rng.choice(WORDS, 200))
        (folder / f"{number:02d}.txt").write_text(" ".join(words))
        (folder / f"{number:02d}b.txt").write_text(" ".join(changed(words, 2, rng)))
    return folder


def test_no_text_resembles_one_of_the_other_split(corpus: Path, tmp_path: Path) -> None:
    dropped: Counter[str] = Counter()
    both = [document.held_out for document in documents([corpus], held_out=0.3, dropped=dropped)]
    # Without this, a text and the one that resembles it would be in both splits.
    assert not dropped
    assert any(first != second for first, second in list(pairwise(both))[::2])

    index = prepare([corpus], tmp_path / "out", TOKENIZER, held_out=0.3, near_duplicates=0.8)

    assert index.dropped == {"near-duplicate": 40}
    assert index.near_duplicates == 0.8
    texts = []
    for split in ("train", "held_out"):
        shards = Shards(tmp_path / "out", split)
        tokens = np.concatenate(shards._arrays)
        texts += [TOKENIZER.decode(each) for each in np.split(tokens, shards.document_starts[1:])]
    assert sorted(texts) == sorted((corpus / f"{n:02d}.txt").read_text() for n in range(40))


def test_the_same_texts_are_left_out_every_time(corpus: Path, tmp_path: Path) -> None:
    first, second = (
        prepare([corpus], tmp_path / name, TOKENIZER, held_out=0.3, near_duplicates=0.5)
        for name in ("first", "second")
    )

    assert first == second


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_what_is_no_resemblance_is_refused(threshold: float, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no resemblance: pass 0 to keep all, or up to 1"):
        prepare([corpus], tmp_path / "out", TOKENIZER, near_duplicates=threshold)
