"""The case `storages` measures what rounding does to random models and to the one that ships."""

from typing import get_args

from bench import storages
from nanochat.ops import Storage


def test_fewer_bits_change_the_logits_more_and_4_do_not_drown_them() -> None:
    results = list(storages.run(quick=True))

    rounding = [storage for storage in get_args(Storage) if storage != "float32"]
    assert [result.what.split(",")[0] for result in results] == [
        storage for storage in rounding for _ in range(2)
    ]
    assert storages.table(results).row_count == 6
    for of_models in (results[::2], results[1::2]):
        half, eight, four = (result.ours for result in of_models)
        assert 0 < half < eight < four / 3
        assert four < 0.2
