"""Of a conversation a model learns the answers, after exactly the tokens that it is asked with."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from nanochat.data.batch import Layout
from nanochat.data.opening import open_splits
from nanochat.data.prepare import prepare
from nanochat.data.shards import Shards
from nanochat.errors import DataError, FormatError
from nanochat.text.chat import Message, render
from tests.data.streams import TOKENIZER, stream
from tests.training.runs import recipe

PACKED = Layout(length=200, packing="best-fit")
ROLES = {"user": "human", "assistant": "gpt"}


def chat(number: int) -> list[Message]:
    """One to three questions with answers, of which some begin with what the system says."""
    system: list[Message] = [{"role": "system", "content": f"Be brief {number}. <|end|>"}]
    turns: list[list[Message]] = [
        [
            {"role": "user", "content": f"{number} + {turn}?"},
            {"role": "assistant", "content": f" It is {number + turn}.\n" * (1 + turn)},
        ]
        for turn in range(1 + number % 3)
    ]
    return [*(system if number % 2 else []), *(message for turn in turns for message in turn)]


CHATS = [chat(number) for number in range(40)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    file = write(folder / "chats.jsonl", [{"messages": each} for each in CHATS])
    prepare([file], folder / "tokens", TOKENIZER, chat=True, held_out=0.2)
    return folder / "tokens"


def answers(split: str, directory: Path) -> list[list[list[int]]]:
    """Prompt and answer of each answer, in the order of the stream."""
    shards = Shards(directory, split)  # type: ignore[arg-type]  # one of the splits
    tokens = np.array(stream(directory, split))
    edges = np.load(directory / f"{split}-answers.npy").reshape(-1, 2)
    starts = shards.document_starts
    return [
        [tokens[starts[starts < begin][-1] : begin].tolist(), tokens[begin:end].tolist()]
        for begin, end in edges
    ]


def test_a_model_learns_to_answer_what_the_server_will_feed_it(chats: Path) -> None:
    expected = [
        [render(messages[:index], TOKENIZER), [*TOKENIZER.encode(str(said)), TOKENIZER.end]]
        for messages in CHATS
        for index, said in enumerate(message["content"] for message in messages)
        if messages[index]["role"] == "assistant"
    ]

    found = [*answers("train", chats), *answers("held_out", chats)]

    assert len(answers("held_out", chats)) > 5
    assert sorted(found) == sorted(expected)


def test_targets_are_the_tokens_of_the_answers(chats: Path) -> None:
    shards = Shards(chats)

    batch = shards.batch(0, shards.num_sequences(PACKED), PACKED)

    learnt = batch.targets[batch.targets >= 0]
    expected = [token for _, answer in answers("train", chats) for token in answer]
    assert sorted(learnt.tolist()) == sorted(expected)
    # Each is the token after its input.
    rows, places = np.nonzero(batch.targets[:, :-1] >= 0)
    assert np.array_equal(batch.inputs[rows, places + 1], batch.targets[rows, places])


def test_windows_of_conversations_have_the_same_targets(chats: Path) -> None:
    shards = Shards(chats)
    layout = Layout(length=shards.num_tokens - 1)

    batch = shards.batch(0, 1, layout)

    learnt = batch.targets[batch.targets >= 0].tolist()
    assert learnt == [token for _, answer in answers("train", chats) for token in answer]


def test_evaluation_counts_the_bytes_of_answers(chats: Path) -> None:
    found = sum(int(each.sum()) for _, each in Shards(chats, "held_out").in_order(4, PACKED))

    said = [TOKENIZER.decode(answer) for _, answer in answers("held_out", chats)]
    assert found == sum(len(each.encode()) for each in said)


def test_conversations_of_share_gpt_and_in_parquet_are_the_same(
    chats: Path, tmp_path: Path
) -> None:
    shared = [
        {
            "conversations": [
                {"from": ROLES.get(each["role"], each["role"]), "value": each["content"]}
                for each in messages
            ]
        }
        for messages in CHATS
    ]
    write(tmp_path / "chats.jsonl", shared)
    (tmp_path / "table").mkdir()
    table = datasets.Dataset.from_list([{"messages": each} for each in CHATS])
    table.to_parquet(tmp_path / "table" / "chats.parquet")

    found = prepare([tmp_path / "chats.jsonl"], tmp_path / "a", TOKENIZER, chat=True, held_out=0.2)
    of_table = prepare([tmp_path / "table"], tmp_path / "b", TOKENIZER, chat=True, held_out=0.2)

    assert found.splits == Shards(chats).index.splits
    assert of_table.splits["train"].bytes + of_table.splits["held_out"].bytes == sum(
        split.bytes for split in found.splits.values()
    )


def test_a_conversation_without_an_answer_is_left_out(tmp_path: Path) -> None:
    rows = [{"messages": each} for each in [*CHATS, CHATS[0][:1]]]

    index = prepare(
        [write(tmp_path / "a.jsonl", rows)], tmp_path / "out", TOKENIZER, chat=True, held_out=0.2
    )

    assert index.dropped == {"without an answer": 1}
    assert index.chat


def test_a_long_conversation_is_cut_to_a_sequence_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long: list[Message] = [
        {"role": "user", "content": "count"},
        {"role": "assistant", "content": "and one " * 300},
    ]
    rows = [{"messages": each} for each in [*CHATS, long]]
    file = write(tmp_path / "chats.jsonl", rows)
    prepare([file], tmp_path / "out", TOKENIZER, chat=True, held_out=0.2)
    train, _ = open_splits(tmp_path / "out", recipe().model, 0, [PACKED])

    assert "1 conversation of" in caplog.text
    batch = train.batch(0, train.sources[""].num_sequences(PACKED), PACKED)
    last = render(long, TOKENIZER, reply=False)
    assert last[:200] in batch.inputs.tolist()
    assert sum(row[0] != TOKENIZER.bos for row in batch.inputs.tolist()) == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"line 1: no messages, .* among its fields text: rename one"),
        ({"messages": []}, r"line 1: messages is \[\]: pass a text, or a list"),
        ({"messages": [{"role": "usr", "content": ""}]}, r"line 1: .*did you mean user"),
        ({"conversations": [{"from": "robot", "value": "hi"}]}, r"line 1: .*role 'robot'"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": []}]},
            r"line 1: message 0 is a tool's or asks for one",
        ),
    ],
    ids=["no messages", "empty", "role", "role of ShareGPT", "tool"],
)
def test_what_is_no_conversation_is_named_with_its_place(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.jsonl", [row])

    with pytest.raises(DataError, match=message):
        prepare([file], tmp_path / "out", TOKENIZER, chat=True)
    assert not (tmp_path / "out").exists()


def test_a_text_is_no_conversation(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hi")

    with pytest.raises(DataError, match=r"a\.txt: a text, not a conversation: pass \.jsonl"):
        prepare([tmp_path / "a.txt"], tmp_path / "out", TOKENIZER, chat=True)


def test_other_answers_are_other_data(chats: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "chats.jsonl", [{"messages": each} for each in CHATS])
    prepare([file], tmp_path / "copy", TOKENIZER, chat=True, held_out=0.2)
    path = tmp_path / "copy" / "train-answers.npy"
    edges = np.load(path)
    np.save(path, edges - 1)

    assert Shards(tmp_path / "copy").fingerprint == Shards(chats).fingerprint
    with pytest.raises(FormatError, match=r"train-answers\.npy: not the SHA-256"):
        Shards(tmp_path / "copy").verify()
    np.save(path, edges[::-1])
    with pytest.raises(FormatError, match=r"train-answers\.npy: not ascending places"):
        Shards(tmp_path / "copy").batch(0, 1, PACKED)
