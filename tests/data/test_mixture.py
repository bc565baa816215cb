"""A batch of a mixture has exact shares of its sources, and depends on its number only."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from nanochat.data.batch import Layout, Packing
from nanochat.data.mixture import Mixture, _block, _quotas
from nanochat.data.prepare import prepare
from nanochat.data.shards import Shards
from nanochat.errors import ConfigError, FormatError
from nanochat.text.tokenizer import Tokenizer
from tests.data.streams import TOKENIZER, WORDS

# Every document of a source consists of one word of its own.
SOURCES = dict(zip(("rust", "python", "books"), WORDS, strict=False))


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sources, of which the last has half of all tokens."""
    root = tmp_path_factory.mktemp("mixture")
    for name, word in SOURCES.items():
        (root / name).mkdir()
        for number in range(20):
            count = 20 + number + (60 if name == "books" else 0)
            (root / name / f"{number}.txt").write_text(" ".join([word] * count))
        prepare([root / name], root / f"{name}-tokens", TOKENIZER, held_out=0.2)
    return {name: root / f"{name}-tokens" for name in SOURCES}


def mixture(directories: dict[str, Path], split: str = "train", seed: int = 0) -> Mixture:
    return Mixture(
        {name: Shards(each, split, seed=seed) for name, each in directories.items()},  # type: ignore[arg-type]  # one of the splits
        seed=seed,
    )


def layout(**weights: float) -> Layout:
    return Layout(length=16, mixture=tuple(weights.items()))


def sources_of(rows: NDArray[np.int64]) -> list[str]:
    texts = [TOKENIZER.decode(row) for row in rows.tolist()]
    return [next(name for name, word in SOURCES.items() if word in text) for text in texts]


def test_every_thousand_samples_have_the_shares_of_the_weights(
    directories: dict[str, Path],
) -> None:
    found = mixture(directories)

    batches = [found.batch(step, 1000, layout(rust=7, python=3)).inputs for step in range(2)]

    for rows in batches:
        assert Counter(sources_of(rows)) == {"rust": 700, "python": 300}
    assert sources_of(batches[0]) != sources_of(batches[1])


def test_without_weights_a_source_has_the_share_of_its_tokens(directories: dict[str, Path]) -> None:
    found = mixture(directories)
    tokens = {name: source.num_tokens for name, source in found.sources.items()}

    counts = Counter(sources_of(found.batch(0, 1000, layout()).inputs))

    for name, count in counts.items():
        assert count / 1000 == pytest.approx(tokens[name] / sum(tokens.values()), abs=0.001)


def test_each_source_is_read_in_its_own_order_without_gaps(directories: dict[str, Path]) -> None:
    found = mixture(directories)
    rows = np.concatenate(
        [found.batch(step, 125, layout(rust=1, python=1)).inputs for step in range(16)]
    )

    of_rust = rows[np.array(sources_of(rows)) == "rust"]

    alone = Shards(directories["rust"]).batch(0, 1000, Layout(length=16)).inputs
    assert np.array_equal(of_rust, alone)


@pytest.mark.parametrize("packing", ["windows", "best-fit"])
def test_a_batch_depends_on_seed_and_step_only(directories: dict[str, Path], packing: str) -> None:
    of_layout = Layout(length=16, packing=packing)  # type: ignore[arg-type]  # one of both
    used = mixture(directories)
    used.batch(3, 8, of_layout)

    batch, again = used.batch(200, 8, of_layout), mixture(directories).batch(200, 8, of_layout)

    assert np.array_equal(batch.inputs, again.inputs)
    assert np.array_equal(batch.targets, again.targets)
    assert (batch.segments is None) == (packing == "windows")
    other = mixture(directories, seed=1).batch(200, 8, of_layout)
    assert not np.array_equal(batch.inputs, other.inputs)


def test_samples_are_the_same_in_batches_of_any_size(directories: dict[str, Path]) -> None:
    found = mixture(directories)

    together = found.batch(0, 2100, layout()).inputs

    each = [found.batch(step, 7, layout()).inputs for step in range(300)]
    assert np.array_equal(np.concatenate(each), together)


@pytest.mark.parametrize("packing", ["windows", "best-fit"])
def test_an_epoch_of_a_source_is_put_in_order_once_however_many_there_are(
    directories: dict[str, Path], packing: Packing
) -> None:
    many = {f"{name}{number}": each for name, each in directories.items() for number in range(4)}
    found = mixture(many)

    for step in range(4):
        found.batch(step, 64, Layout(length=64, packing=packing))

    for source in found.sources.values():
        orders = source._epoch_order if packing == "best-fit" else source._window_starts
        epochs = orders.cache_info()
        assert epochs.hits > epochs.misses
        assert epochs.misses <= 1 + (epochs.hits + epochs.misses) // source.num_sequences(
            Layout(length=64, packing=packing)
        )


def test_one_source_has_the_batches_that_it_has_alone(directories: dict[str, Path]) -> None:
    alone = Shards(directories["rust"], seed=3)

    found = Mixture({"": alone}, seed=3)

    assert np.array_equal(
        found.batch(5, 8, layout()).inputs, alone.batch(5, 8, Layout(length=16)).inputs
    )
    assert found.fingerprint == alone.fingerprint


def test_the_order_of_the_sources_is_fixed_for_ever() -> None:
    chosen, before = _block((500, 300, 200), (0, 0, 0, 3))

    assert chosen[:12].tolist() == [0, 1, 0, 2, 0, 0, 2, 0, 2, 0, 2, 0]
    assert before[chosen == 1].tolist() == list(range(300))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30).filter(lambda w: sum(w) > 1e-3))
def test_quotas_are_nearest_and_none_is_forgotten(weights: list[float]) -> None:
    quotas = _quotas(tuple(weights))

    assert sum(quotas) == 1000
    for weight, quota in zip(weights, quotas, strict=True):
        exact = 1000 * weight / sum(weights)
        assert (quota >= 1) == (exact > 0)
        assert quota < exact + 1 or quota == 1


def test_held_out_text_of_each_source_comes_first_and_then_evenly(
    directories: dict[str, Path],
) -> None:
    found = mixture(directories, "held_out")

    batches = list(found.in_order(2, layout()))

    names = [name for name, _, _ in batches]
    assert set(names[:3]) == set(SOURCES)
    assert [(name, len(batch.inputs)) for name, batch, _ in batches] == found.turns(2, layout())
    assert sum(len(batch.inputs) for _, batch, _ in batches) == found.num_in_order(layout())
    for name, batch, _ in batches:
        assert set(sources_of(batch.inputs)) == {name}
    half = Counter(names[: len(names) // 2])
    assert all(abs(2 * half[name] - count) <= 3 for name, count in Counter(names).items())


def test_the_fingerprint_is_of_all_sources_and_their_names(directories: dict[str, Path]) -> None:
    same = mixture(dict(reversed(directories.items())))
    fewer = mixture({name: directories[name] for name in ("rust", "python")})
    swapped = mixture(dict(zip(directories, reversed(directories.values()), strict=True)))

    found = mixture(directories).fingerprint

    assert same.fingerprint == found
    assert len({found, fewer.fingerprint, swapped.fingerprint}) == 3


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"pyton": 1.0}, r"'pyton', which is none of the data \(did you mean python\?\)"),
        ({"rust": 0.0}, "one weight must be more than 0"),
    ],
    ids=["unknown", "zero"],
)
def test_a_mixture_that_cannot_be_is_refused(
    directories: dict[str, Path], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        mixture(directories).require(layout(**weights))


def test_a_mixture_of_data_without_names_says_how_to_name_them(
    directories: dict[str, Path],
) -> None:
    alone = Mixture({"": Shards(directories["rust"])})

    with pytest.raises(ConfigError, match="pass --data NAME=DIRECTORY for each"):
        alone.require(layout(rust=1))


def test_sources_of_two_tokenizers_are_refused(
    directories: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    prepare([corpus], tmp_path / "other", Tokenizer.train(["ab ab"], 265), held_out=0.2)

    with pytest.raises(FormatError, match="prepare it again with --tokenizer"):
        mixture({**directories, "other": tmp_path / "other"})
