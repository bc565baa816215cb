"""Other people's models do everything that a model of ours does: generate, chat, score, be saved and loaded."""

import json
import logging
from pathlib import Path

import pytest

from nanochat.errors import InputError
from nanochat.lm import Model
from nanochat.text.library import LibraryTokenizer
from nanochat.text.roles import Roles
from tests.core.foreign_tokenizers import llama_3, write_llama_3
from tests.export.foreign_ggufs import Case, write
from tests.export.foreign_models import build, greedy, save

PROMPT = "to be or not"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BitNet model with a tokenizer like Llama 3's, as published ones have it."""
    path = tmp_path_factory.mktemp("foreign") / "model"
    save(build("autobitlinear packed", vocabulary=308), "autobitlinear packed", path)
    return write_llama_3(path)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return Model.from_pretrained(folder, backend="reference")


def test_generated_text_is_that_of_transformers(model: Model) -> None:
    theirs = build("autobitlinear packed", vocabulary=308)
    ids = llama_3().encode(PROMPT).ids

    text = model.generate(PROMPT, max_tokens=16)

    expected = greedy(theirs, ids, 16)
    ends = [i for i, token in enumerate(expected) if token in model.tokenizer.stop_ids]
    assert model.encode_prompt(PROMPT) == ids
    assert text == model.tokenizer.decode(expected[: ends[0] if ends else None])


def test_a_conversation_is_written_by_the_model_s_own_template(model: Model) -> None:
    answer = model.chat([{"role": "user", "content": "to be?"}], max_tokens=4)

    assert answer == "".join(
        model.stream_chat([{"role": "user", "content": "to be?"}], max_tokens=4)
    )


def test_an_answer_ends_at_any_of_the_model_s_stop_tokens(model: Model) -> None:
    stop = model.tokenizer.specials["<|eot_id|>"]

    pieces = list(model.pieces([[stop] * 3], max_tokens=30, temperature=5.0, seed=3))

    stops = [piece.token for piece in pieces if piece.token in model.tokenizer.stop_ids]
    assert stops == ([pieces[-1].token] if pieces[-1].finish_reason == "stop" else [])


def test_a_text_has_a_score(model: Model) -> None:
    score = model.score("to be or not to be")

    assert score.tokens == len(model.tokenizer.encode("to be or not to be"))
    assert 0 < score.bits_per_byte < 50


@pytest.mark.parametrize(("eos", "scored"), [(301, 3), (None, 2)])
def test_a_score_needs_something_before_the_text(
    model: Model, eos: int | None, scored: int
) -> None:
    data = json.loads(llama_3().to_str())
    tokenizer = LibraryTokenizer(data, Roles(eos=eos, adds_bos=False))
    without = Model(model.config, model.weights, tokenizer, backend="reference")
    text = tokenizer.decode(tokenizer.encode("to be or not")[:3])

    assert without.score(text).tokens == scored


def test_one_token_alone_has_no_score(model: Model) -> None:
    data = json.loads(llama_3().to_str())
    tokenizer = LibraryTokenizer(data, Roles(adds_bos=False))
    without = Model(model.config, model.weights, tokenizer, backend="reference")

    with pytest.raises(InputError, match="the text is one token"):
        without.score("a")


def test_a_model_is_saved_as_ours_and_loaded_again(model: Model, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)

    again = Model.from_pretrained(tmp_path, backend="reference")

    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "nanochat-ternary"
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert again.tokenizer.stop_ids == model.tokenizer.stop_ids
    assert again.tokenizer.chat_template == model.tokenizer.chat_template
    assert again.generate(PROMPT, max_tokens=8) == model.generate(PROMPT, max_tokens=8)


def test_a_gguf_file_of_another_program_is_a_model_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "model.gguf", Case(architecture="llama"))

    with caplog.at_level(logging.INFO):
        model = Model.from_pretrained(path, backend="reference")
    text = model.generate(PROMPT, max_tokens=8)

    model.save_pretrained(tmp_path / "saved")
    again = Model.from_pretrained(tmp_path / "saved", backend="reference")
    assert "activations are rounded in blocks of 256" in caplog.text
    assert again.generate(PROMPT, max_tokens=8) == text
    assert again.tokenizer.stop_ids == model.tokenizer.stop_ids


def test_all_backends_write_the_same_text(folder: Path) -> None:
    texts = {
        backend: Model.from_pretrained(folder, backend=backend).generate(PROMPT, max_tokens=8)
        for backend in ("reference", "numba", "torch")
    }

    assert len(set(texts.values())) == 1, texts
