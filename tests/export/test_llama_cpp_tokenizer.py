"""The project's tokenizer and llama.cpp's, from the same file, give every text the same tokens."""

import platform
import random
import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from nanochat.bundle import Bundle
from nanochat.config import ModelConfig
from nanochat.errors import InputError
from nanochat.export.gguf.write import write_gguf
from nanochat.text.tokenizer import SPECIALS, Tokenizer
from nanochat.zoo.hub import resolve
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.parity.random_models import random_packed_weights

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(resolve("nanochat-tiny"))


@pytest.fixture(scope="module")
def model(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LlamaCppVocabulary]:
    # More rows than tokens, so that some names stand for no token.
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + 9,
        width=256,
        num_layers=1,
        num_heads=4,
        num_kv_heads=1,
        ffn_width=256,
        num_streams=1,
    )
    source = Bundle(
        name="x",
        config=config,
        weights=random_packed_weights(config, 0),
        tokenizer=tokenizer,
        generation={},
    )
    path = tmp_path_factory.mktemp("tokenizer") / "x.gguf"
    write_gguf(path, source)
    with closing(LlamaCppVocabulary(path, context=64)) as opened:
        yield opened


def test_a_character_has_the_same_tokens_between_all_kinds_of_others(
    model: LlamaCppVocabulary, tokenizer: Tokenizer
) -> None:
    # All of the first planes' alphabets, and a sample of the rest; surrogates are no characters.
    numbers = [*range(0x3100), *range(0x3100, 0x110000, 61)]
    characters = [chr(number) for number in numbers if not 0xD800 <= number < 0xE000]
    texts = [f"a{c}1{c} {c}!{c}\n{c}'{c}s" for c in characters]

    different = [text for text in texts if model.tokenize(text) != tokenizer.encode(text)]

    assert different == []


def test_random_texts_have_the_same_tokens(model: LlamaCppVocabulary, tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    characters = (
        "aZ \u00e91\u0663 \n\t\r'sdtm_-.<|>{}\U0001f600\u0301\u200d\u65e5\u00a0\u3000\x00\x85"
    )
    texts = ["".join(generator.choices(characters, k=12)) for _ in range(3000)]

    different = [text for text in texts if model.tokenize(text) != tokenizer.encode(text)]

    assert different == []


def test_special_tokens_are_parsed_where_that_is_asked_for(
    model: LlamaCppVocabulary, tokenizer: Tokenizer
) -> None:
    text = "".join(f"{name} a b\n" for name in SPECIALS)

    assert model.tokenize(text, specials=True) == tokenizer.encode(text, specials=True)


def test_text_without_a_utf_8_form_is_refused_by_both(
    model: LlamaCppVocabulary, tokenizer: Tokenizer
) -> None:
    for encode in (model.tokenize, tokenizer.encode):
        with pytest.raises(InputError, match="lone surrogate"):
            encode("a\ud800b")
