"""What is wrong with prepared data is told when a run opens them, not when it comes to the place."""

import json
from pathlib import Path

import numpy as np
import pytest

from nanochat.data.batch import Layout
from nanochat.data.opening import open_splits
from nanochat.data.prepare import prepare
from nanochat.data.shards import Shards
from nanochat.errors import DataError, FormatError
from tests.data.streams import TOKENIZER
from tests.training.runs import recipe

MODEL = recipe().model


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_one_token_outside_the_vocabulary_is_found(copy: Path, split: str) -> None:
    path = copy / f"{split}-00000.npy"
    tokens = np.load(path)
    tokens[-1] = 60_000
    np.save(path, tokens)

    with pytest.raises(FormatError, match=rf"{path}: token 60000 is outside the vocabulary of 290"):
        open_splits(copy, MODEL, 0, [Layout(length=64)])


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize(
    "layout",
    [Layout(length=64, document_masks=True), Layout(length=64, packing="best-fit")],
    ids=["masked", "packed"],
)
def test_places_of_documents_that_cannot_be_are_found(
    copy: Path, layout: Layout, split: str
) -> None:
    path = copy / f"{split}-starts.npy"
    np.save(path, np.load(path)[::-1])

    with pytest.raises(FormatError, match=rf"{path}: not ascending places"):
        open_splits(copy, MODEL, 0, [layout])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_places_of_answers_that_cannot_be_are_found(tmp_path: Path, split: str) -> None:
    said = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "hi " * 20}]
    rows = [{"messages": [*said, {"role": "user", "content": f"{n}"}]} for n in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = tmp_path / "out"
    prepare([tmp_path / "a.jsonl"], data, TOKENIZER, chat=True, held_out=0.2)
    path = data / f"{split}-answers.npy"
    np.save(path, np.load(path)[::-1])

    with pytest.raises(FormatError, match=rf"{path}: not ascending places"):
        open_splits(data, MODEL, 0, [Layout(length=64)])


def test_conversations_of_which_no_answer_can_be_seen_are_refused(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "say "}, {"role": "assistant", "content": "hi"}]
    rows = [{"messages": [{"role": "system", "content": f"{n}"}, *said]} for n in range(10, 50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = tmp_path / "out"
    prepare([tmp_path / "a.jsonl"], data, TOKENIZER, chat=True, held_out=0.2)
    whole = Shards(data).batch(0, 1, Layout(length=64, packing="best-fit"))
    first = int(np.flatnonzero(whole.targets[0] >= 0)[0]) + 1

    open_splits(data, MODEL, 0, [Layout(length=first, packing="best-fit")])
    with pytest.raises(DataError, match=rf"within {first - 1} tokens: pass a length of {first} or"):
        open_splits(data, MODEL, 0, [Layout(length=first - 1, packing="best-fit")])
