"""Published tokenizers, as transformers saves them, give the tokens and texts that transformers gives."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils import logging

from nanochat.text.codec import TextCodec
from nanochat.text.library import load_tokenizer
from nanochat.text.tokenizer import StreamDecoder
from tests.core.real_tokenizers import NAMES, real_tokenizer
from tests.export.texts import MARKS, ODD_STRINGS

TEXTS = [*ODD_STRINGS, *MARKS]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One tokenizer, read by transformers and by this package."""

    theirs: Any
    ours: TextCodec


@pytest.fixture(scope="module", params=NAMES)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("tokenizer")
    # It says which class it takes instead of one that the folder names.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # the library's
    theirs = AutoTokenizer.from_pretrained(real_tokenizer(request.param))
    theirs.save_pretrained(folder)
    yield Pair(theirs=theirs, ours=load_tokenizer(folder))
    logging.set_verbosity_warning()  # type: ignore[no-untyped-call]  # the library's


def test_a_text_has_the_tokens_of_transformers_with_its_start(pair: Pair) -> None:
    found = {text: [*pair.ours.opening, *pair.ours.encode(text)] for text in TEXTS}

    assert found == {text: pair.theirs.encode(text, split_special_tokens=True) for text in TEXTS}


def test_names_of_special_tokens_are_tokens_where_the_caller_asks_for_it(pair: Pair) -> None:
    found = {text: pair.ours.encode(text, specials=True) for text in TEXTS}

    assert found == {text: pair.theirs.encode(text, add_special_tokens=False) for text in TEXTS}


def test_tokens_become_the_text_of_the_library(pair: Pair) -> None:
    ids = {text: pair.theirs.encode(text) for text in TEXTS}
    library = pair.theirs.backend_tokenizer

    found = {text: pair.ours.decode(ids[text]) for text in TEXTS}
    whole = {text: pair.ours.decode(ids[text], skip_specials=False) for text in TEXTS}

    assert found == {text: library.decode(ids[text]) for text in TEXTS}
    assert whole == {text: library.decode(ids[text], skip_special_tokens=False) for text in TEXTS}


def test_a_stream_of_tokens_adds_up_to_the_text(pair: Pair) -> None:
    decoder = StreamDecoder(pair.ours)
    ids = {text: pair.ours.encode(text) for text in TEXTS}

    streamed = {
        text: "".join([*map(decoder.push, tokens), decoder.flush()]) for text, tokens in ids.items()
    }

    # A stream goes on with a text, and so keeps the spaces that some decoders take off its start.
    whole = {text: pair.ours.decode(tokens) for text, tokens in ids.items()}
    assert {text: found.lstrip(" ") for text, found in streamed.items()} == {
        text: found.lstrip(" ") for text, found in whole.items()
    }


def test_the_vocabulary_and_the_roles_are_those_of_transformers(pair: Pair) -> None:
    theirs = pair.theirs

    assert pair.ours.bos == theirs.bos_token_id
    assert pair.ours.eos == theirs.eos_token_id
    assert pair.ours.vocab_size == len(theirs)
    assert theirs.eos_token_id in pair.ours.stop_ids
