"""The tokenizer loses nothing, lets no text forge a special, and refuses damaged files in words."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from nanochat.errors import FormatError, InputError, SaveError
from nanochat.text.library import load_tokenizer
from nanochat.text.tokenizer import SPECIALS, StreamDecoder, Tokenizer

TEXT = 'fn main() { println!("Hello, wörld 🙂"); } // to be or not to be, that is the question\n'
TOKENIZER = Tokenizer.train([TEXT] * 4, vocab_size=320)
# Puts a token behind a text.
END = {
    "type": "TemplateProcessing",
    "single": [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<|eos|>", "type_id": 0}},
    ],
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    TOKENIZER.save(tmp_path)
    return tmp_path


def rewrite(directory: Path, **changes: Any) -> None:
    """Replace entries of tokenizer.json; a name with two underscores is one inside another."""
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text())
    for name, value in changes.items():
        *outer, inner = name.split("__")
        (data[outer[0]] if outer else data)[inner] = value
    path.write_text(json.dumps(data))


@given(st.binary())
def test_any_bytes_survive_a_round_trip(data: bytes) -> None:
    assert TOKENIZER.decode_bytes(TOKENIZER.encode_bytes(data)) == data


@given(st.text())
def test_any_text_survives_a_round_trip(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.text())
def test_the_bytes_of_a_text_have_the_tokens_of_the_text(text: str) -> None:
    assert TOKENIZER.encode_bytes(text.encode()) == TOKENIZER.encode(text)


@given(st.lists(st.sampled_from([*"<|bosenduser>", " ", *SPECIALS])))
def test_no_text_encodes_to_a_special(parts: list[str]) -> None:
    assert TOKENIZER.special_ids.isdisjoint(TOKENIZER.encode("".join(parts)))


@given(st.lists(st.sampled_from(["to be", "é", *SPECIALS])))
def test_specials_are_encoded_on_request(parts: list[str]) -> None:
    tokens = TOKENIZER.encode("".join(parts), specials=True)

    found = [SPECIALS[token] for token in tokens if token in TOKENIZER.special_ids]
    assert found == [part for part in parts if part in SPECIALS]
    assert TOKENIZER.decode(tokens, skip_specials=False) == "".join(parts)


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1)))
def test_a_stream_adds_up_to_the_decoded_whole(tokens: list[int]) -> None:
    decoder = StreamDecoder(TOKENIZER)

    parts = [decoder.push(token) for token in tokens]

    assert "".join(parts) + decoder.flush() == TOKENIZER.decode(tokens)


def test_a_stream_holds_a_character_back_until_it_is_whole() -> None:
    decoder = StreamDecoder(TOKENIZER)

    parts = [decoder.push(token) for token in TOKENIZER.encode_bytes(b"\xf0\x9f")]

    assert "".join(parts) == ""
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_specials_have_the_first_ids() -> None:
    tokenizer = TOKENIZER

    assert tokenizer.pieces[: len(SPECIALS)] == SPECIALS
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 1, 2)
    assert (tokenizer.user, tokenizer.assistant, tokenizer.system, tokenizer.end) == (3, 4, 5, 6)


def test_the_byte_alphabet_is_that_of_the_library() -> None:
    characters = {piece for piece in TOKENIZER.pieces if len(piece) == 1}

    assert characters == set(pre_tokenizers.ByteLevel.alphabet())


def test_num_bytes_counts_the_bytes_of_the_text() -> None:
    tokens = TOKENIZER.encode(TEXT)

    assert TOKENIZER.num_bytes[tokens].sum() == len(TEXT.encode())
    assert TOKENIZER.num_bytes.shape == (TOKENIZER.vocab_size,)
    assert np.flatnonzero(TOKENIZER.num_bytes == 0).tolist() == sorted(TOKENIZER.special_ids)


def test_training_learns_merges_that_shorten_the_text() -> None:
    assert TOKENIZER.vocab_size == 320
    assert len(TOKENIZER.encode(TEXT)) < len(TEXT) / 1.5


def test_training_ignores_the_order_of_the_texts() -> None:
    texts = ["to be or not to be", "that is the question", "whether it is nobler"] * 2

    assert Tokenizer.train(texts, 290).fingerprint == Tokenizer.train(texts[::-1], 290).fingerprint


def test_training_on_too_little_text_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.train(["ab"], 1000)

    assert tokenizer.vocab_size == 263
    assert "the vocabulary has 263" in caplog.text


def test_a_batch_is_encoded_as_its_texts() -> None:
    texts = [TEXT, "", "<|end|>"]

    assert TOKENIZER.encode_batch(texts) == [TOKENIZER.encode(text) for text in texts]


def test_a_saved_tokenizer_loads_as_itself(saved: Path) -> None:
    loaded = Tokenizer.load(saved)

    assert loaded.fingerprint == TOKENIZER.fingerprint
    assert loaded.encode(TEXT) == TOKENIZER.encode(TEXT)


def test_saving_leaves_two_files(saved: Path) -> None:
    names = sorted(path.name for path in saved.iterdir())

    assert names == ["tokenizer.json", "tokenizer_config.json"]


def test_the_config_names_the_specials_and_the_template(saved: Path) -> None:
    config = json.loads((saved / "tokenizer_config.json").read_text())

    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["bos_token"], config["eos_token"]) == ("<|bos|>", "<|eos|>")
    assert config["clean_up_tokenization_spaces"] is False
    assert "<|end|>" in config["chat_template"]


def test_other_programs_begin_a_text_as_our_models_do(saved: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(saved / "tokenizer.json"))

    assert library.encode("to be").ids == [TOKENIZER.bos, *TOKENIZER.encode("to be")]


def test_files_that_begin_no_text_load_and_are_written_so_that_they_do(saved: Path) -> None:
    rewrite(saved, post_processor=None)

    assert b'"post_processor": null' not in Tokenizer.load(saved).files()["tokenizer.json"]


@pytest.mark.parametrize("start", [True, False])
def test_what_transformers_saves_again_loads(saved: Path, start: bool) -> None:
    if not start:
        rewrite(saved, post_processor=None)
    AutoTokenizer.from_pretrained(saved).save_pretrained(saved)

    loaded = load_tokenizer(saved)

    assert isinstance(loaded, Tokenizer)
    assert loaded.files() == TOKENIZER.files()


def test_merges_written_as_strings_load(saved: Path) -> None:
    rewrite(saved, model__merges=[" ".join(pair) for pair in TOKENIZER.merges])

    assert Tokenizer.load(saved).fingerprint == TOKENIZER.fingerprint


def test_a_directory_that_cannot_be_written_is_a_save_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(SaveError, match="cannot write"):
        TOKENIZER.save(tmp_path / "file")


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"model": {"type": "BPE", "vo', id="truncated"),
        pytest.param(b"[" * 100_000, id="nested"),
        pytest.param(b"\xff\xfe\x00", id="binary"),
    ],
)
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(contents)

    with pytest.raises(FormatError, match=r"tokenizer\.json: not valid JSON"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        pytest.param("[]", "holds no JSON object", id="list"),
        pytest.param("null", "holds no JSON object", id="null"),
        pytest.param("{}", "no object 'model'", id="no model"),
        pytest.param('{"model": []}', "no object 'model'", id="list for a model"),
    ],
)
def test_json_without_a_model_is_refused(tmp_path: Path, contents: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(contents)

    with pytest.raises(FormatError, match=rf"tokenizer\.json: .*{message}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"model__type": "Unigram"}, "model.type is 'Unigram'", id="not a BPE"),
        pytest.param({"model__ignore_merges": True}, "model.ignore_merges is True", id="merging"),
        pytest.param({"normalizer": {"type": "NFC"}}, "normalizer is", id="normalizer"),
        pytest.param({"pre_tokenizer": None}, "pre_tokenizer.type is None", id="no split"),
        pytest.param({"post_processor": END}, "post_processor is .*, must be None", id="an end"),
        pytest.param({"model__vocab": None}, "no object 'vocab'", id="no vocabulary"),
        pytest.param({"model__vocab": {"a": 0, "b": 2}}, "piece 'b' has id 2", id="gap"),
        pytest.param({"model__vocab": {"a": 0, "b": 0}}, "used twice", id="duplicate id"),
        pytest.param({"model__vocab": {"a": -1}}, "piece 'a' has id -1", id="negative id"),
        pytest.param({"model__vocab": {"a": 0.5}}, "piece 'a' has id 0.5", id="fraction"),
        pytest.param({"model__vocab": {"a": 10**18}}, "piece 'a' has id", id="huge id"),
        pytest.param({"model__vocab": {"a": 0}}, "the first pieces are", id="no specials"),
        pytest.param({"model__merges": {}}, "no list 'merges'", id="no merges"),
        pytest.param({"model__merges": [["a"]]}, "is not a pair", id="half a merge"),
        pytest.param({"model__merges": [[1, 2]]}, "is not a pair", id="numbers for pieces"),
        pytest.param({"model__merges": [["é", "z"]]}, "do not fit the vocab", id="unknown piece"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused_with_the_rule(
    saved: Path, changes: dict[str, Any], message: str
) -> None:
    rewrite(saved, **changes)

    with pytest.raises(FormatError, match=message):
        Tokenizer.load(saved)


def test_a_vocabulary_without_a_byte_is_refused() -> None:
    pieces = [piece for piece in TOKENIZER.pieces if piece != "!"]

    with pytest.raises(FormatError, match="no token for byte 0x21"):
        Tokenizer(pieces, [])


def test_a_piece_outside_the_byte_alphabet_is_refused() -> None:
    with pytest.raises(FormatError, match="piece '字' is not in the byte alphabet"):
        Tokenizer([*TOKENIZER.pieces, "字"], [])


def test_a_file_over_64_mib_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(64 * 2**20 + 1)

    with pytest.raises(FormatError, match="over the limit of 67108864"):
        Tokenizer.load(tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"tokenizer\.json: No such file"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("token", [-1, TOKENIZER.vocab_size])
def test_a_token_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(InputError, match="is outside this vocabulary of 320 tokens"):
        TOKENIZER.decode([token])


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InputError, match="character 1 of the text is a lone surrogate"):
        TOKENIZER.encode("a\ud800")


def test_bytes_are_not_text() -> None:
    with pytest.raises(InputError, match="cannot encode bytes: pass a str"):
        TOKENIZER.encode(b"abc")  # type: ignore[arg-type] # the mistake under test


def test_one_string_is_not_a_list_of_texts() -> None:
    with pytest.raises(InputError, match="pass a list of strings"):
        Tokenizer.train("abc", 300)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="pass vocab_size=263 or more"):
        Tokenizer.train(["abc"], 262)
