"""Other people's tokenizers encode as their library does, lose nothing, and let no text forge a special token."""

import itertools
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nanochat.errors import FormatError, InputError
from nanochat.text.codec import TextCodec
from nanochat.text.library import LibraryTokenizer, load_tokenizer
from nanochat.text.roles import Roles
from nanochat.text.tokenizer import StreamDecoder, Tokenizer
from tests.core.foreign_tokenizers import llama_3, sentencepiece, unigram, write, write_llama_3
from tests.parity.random_models import random_tokenizer

LIBRARIES = {"llama 3": llama_3(), "sentencepiece": sentencepiece(), "unigram": unigram()}
TEXTS = st.text() | st.sampled_from(
    ["to be  or", " wörld", "\n\n x", "<s>", "</s> a", "<|eot_id|>"]
)


def codec(library: tokenizers.Tokenizer, roles: Roles = Roles()) -> LibraryTokenizer:  # noqa: B008  # frozen
    return LibraryTokenizer(json.loads(library.to_str()), roles)


CODECS = {name: codec(library) for name, library in LIBRARIES.items()}


@pytest.mark.parametrize("name", CODECS)
@given(text=TEXTS)
def test_no_text_becomes_a_special_token(name: str, text: str) -> None:
    tokenizer = CODECS[name]
    unknown = LIBRARIES[name].token_to_id("<unk>")

    assert not tokenizer.special_ids.intersection(tokenizer.encode(text)) - {unknown}


@pytest.mark.parametrize("name", ["llama 3", "sentencepiece"])
@given(text=TEXTS)
def test_a_text_survives_a_round_trip(name: str, text: str) -> None:
    # SentencePiece writes spaces so.
    assume("▁" not in text)
    tokenizer = CODECS[name]

    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("text", ["to be or not", "that 12345 is\n\n  wörld 🙂", "", " x"])
def test_a_text_is_encoded_and_decoded_as_the_library_does(name: str, text: str) -> None:
    tokenizer, library = CODECS[name], LIBRARIES[name]

    ids = tokenizer.encode(text)

    assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == library.decode(ids)
    assert tokenizer.encode_batch([text]) == [ids]


@pytest.mark.parametrize("name", ["sentencepiece", "unigram"])
def test_an_added_token_is_decoded_as_the_library_does(name: str) -> None:
    library = tokenizers.Tokenizer.from_str(LIBRARIES[name].to_str())
    # Gemma's are such: runs of spaces, in a vocabulary that writes spaces otherwise.
    added = ["▁▁", "▁▁▁▁", "a▁b"]
    library.add_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in added])
    tokenizer, vocabulary = codec(library), library.get_vocab()
    ids = [vocabulary[piece] for piece in (*added, "▁", "o")]
    runs = [list(run) for length in (1, 2, 3) for run in itertools.product(ids, repeat=length)]

    assert [tokenizer.decode(run) for run in runs] == [library.decode(run) for run in runs]
    assert tokenizer.token_bytes(ids[1]) == b" " * 4
    assert tokenizer.token_bytes(ids[2]) == b"a b"


def test_a_name_that_the_vocabulary_itself_holds_is_spelled_in_other_tokens() -> None:
    tokenizer = CODECS["unigram"]

    ids = tokenizer.encode("to</s>be")

    assert unigram().token_to_id("</s>") in unigram().encode("to</s>be").ids
    assert tokenizer.decode(ids).replace(" ", "") == "to</s>be"
    assert tokenizer.special_ids.isdisjoint(ids)


def test_names_of_specials_are_tokens_where_the_caller_asks_for_it() -> None:
    ids = CODECS["llama 3"].encode("to<|eot_id|>", specials=True)

    assert ids == llama_3().encode("to<|eot_id|>", add_special_tokens=False).ids
    assert ids[-1] == CODECS["llama 3"].specials["<|eot_id|>"]


def test_a_stream_continues_a_text_and_its_parts_add_up() -> None:
    tokenizer = CODECS["sentencepiece"]
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.encode("to bé 🙂")

    parts = [decoder.push(token) for token in ids]

    assert "".join(parts) == " to bé 🙂"
    assert "" in parts


def test_files_say_what_tokens_are_for(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_llama_3(tmp_path))

    names = {name: llama_3().token_to_id(name) for name in tokenizer.specials}
    assert tokenizer.specials == names
    assert tokenizer.bos == names["<|begin_of_text|>"]
    assert tokenizer.eos == names["<|end_of_text|>"]
    assert tokenizer.stop_ids == {names["<|end_of_text|>"], names["<|eot_id|>"]}
    assert tokenizer.opening == (tokenizer.bos,)
    assert "start_header_id" in tokenizer.chat_template
    assert tokenizer.vocab_size == llama_3().get_vocab_size()


def test_a_template_of_its_own_file_comes_first(tmp_path: Path) -> None:
    write_llama_3(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("of its own")

    assert load_tokenizer(tmp_path).chat_template == "of its own"


@pytest.mark.parametrize(
    "settings",
    [{}, {"bos_token": "<|eot_id|>"}, {"bos_token": "<|eot_id|>", "added_tokens_decoder": {}}],
    ids=["no", "other", "newer"],
)
def test_older_names_of_special_tokens_count_where_transformers_reads_them(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    write(llama_3(), tmp_path, settings={"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    names = {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|end_of_text|>"}}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(names))
    theirs = AutoTokenizer.from_pretrained(tmp_path)

    ours = load_tokenizer(tmp_path)

    assert (ours.bos, ours.eos) == (theirs.bos_token_id, theirs.eos_token_id)


@pytest.mark.parametrize("adds", [True, False])
def test_the_settings_decide_whether_a_text_has_a_start(tmp_path: Path, adds: bool) -> None:
    write(sentencepiece(), tmp_path, settings={"bos_token": "<s>", "add_bos_token": adds})

    assert load_tokenizer(tmp_path).opening == ((1,) if adds else ())


def test_a_token_that_ends_answers_is_special_whatever_the_file_says(tmp_path: Path) -> None:
    data = json.loads(llama_3().to_str())
    for added in data["added_tokens"]:
        added["special"] = False
    write(llama_3(), tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))

    tokenizer = load_tokenizer(tmp_path)

    end = llama_3().token_to_id("<|eot_id|>")
    assert end in tokenizer.stop_ids
    assert end not in tokenizer.encode("<|eot_id|>")


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    roles = Roles(bos=1, eos=2, adds_bos=True, chat_template="{{ messages }}")
    tokenizer = codec(sentencepiece(), roles)
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)

    again = load_tokenizer(tmp_path)

    assert (again.bos, again.eos, again.opening) == (1, 2, (1,))
    assert again.chat_template == "{{ messages }}"
    assert again.fingerprint == tokenizer.fingerprint


def test_files_by_which_others_do_the_same_stay_as_they_are(tmp_path: Path) -> None:
    write_llama_3(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": 77}))

    files = load_tokenizer(tmp_path).files()

    assert files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()
    assert json.loads(files["tokenizer_config.json"])["model_max_length"] == 77


def test_a_start_that_is_no_added_token_is_written_by_its_piece(tmp_path: Path) -> None:
    write(llama_3(), tmp_path, settings={"add_bos_token": True}, generation={"bos_token_id": 65})
    tokenizer = load_tokenizer(tmp_path)
    for name, content in tokenizer.files().items():
        (tmp_path / name).write_bytes(content)

    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    assert library.encode("to").ids == [65, *tokenizer.encode("to")]


def test_our_own_tokenizer_is_known_by_its_specials(tmp_path: Path) -> None:
    random_tokenizer().save(tmp_path)

    tokenizer = load_tokenizer(tmp_path)

    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.fingerprint == random_tokenizer().fingerprint


def test_ours_is_a_codec_too() -> None:
    tokenizer: TextCodec = random_tokenizer()

    assert tokenizer.opening == (tokenizer.bos,)
    assert tokenizer.stop_ids == tokenizer.special_ids


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="token 100000 is outside this vocabulary of 305 tokens"):
        CODECS["llama 3"].token_bytes(100_000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"model": {"type": "BPE"}}, "cannot read this", id="no vocabulary"),
        pytest.param(
            {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}},
            "become text by",
            id="decoder",
        ),
        pytest.param({"decoder": None}, "become text by None", id="no decoder"),
        pytest.param(
            {
                "decoder": {
                    "type": "Sequence",
                    "decoders": [
                        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
                        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                    ],
                }
            },
            "become text by",
            id="every piece loses a space",
        ),
        pytest.param({"added_tokens": [{"id": 1}]}, "no content and id", id="a token's name"),
        pytest.param({"added_tokens": {"a": 1}}, "must be a list", id="tokens"),
        pytest.param(
            {"added_tokens": [{"id": -1, "content": "x"}]}, "no content and id", id="negative"
        ),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    data = json.loads(llama_3().to_str()) | changes
    write(llama_3(), tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))

    with pytest.raises(FormatError, match=message) as error:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(error.value)


@pytest.mark.parametrize("value", ["one", [1, "two"], 5000])
def test_an_end_that_is_no_token_is_refused(tmp_path: Path, value: object) -> None:
    write(llama_3(), tmp_path, generation={"eos_token_id": value})

    with pytest.raises(FormatError, match="token"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("value", [-1, [-1]])
def test_a_negative_token_is_none(tmp_path: Path, value: object) -> None:
    roles = {f"{role}_token_id": value for role in ("bos", "eos", "pad")}
    write(unigram(), tmp_path, generation=roles)

    tokenizer = load_tokenizer(tmp_path)

    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (None, None, None)
    assert tokenizer.stop_ids == frozenset()


def test_padding_of_another_vocabulary_does_no_harm(tmp_path: Path) -> None:
    write(llama_3(), tmp_path, generation={"pad_token_id": 128_004})

    assert load_tokenizer(tmp_path).pad is None


def test_an_added_token_without_a_text_is_left_out_as_by_the_library(tmp_path: Path) -> None:
    data = json.loads(llama_3().to_str())
    data["added_tokens"].append({**data["added_tokens"][0], "id": 400, "content": ""})
    write(llama_3(), tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    tokenizer = load_tokenizer(tmp_path)

    assert tokenizer.vocab_size == library.get_vocab_size()
    assert tokenizer.encode("to be") == library.encode("to be", add_special_tokens=False).ids


def test_a_library_that_gives_up_is_an_error(tmp_path: Path) -> None:
    data = json.loads(llama_3().to_str())
    data["post_processor"]["special_tokens"] = {}
    write(llama_3(), tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))

    with pytest.raises(FormatError, match="gives up on this tokenizer"):
        load_tokenizer(tmp_path)
