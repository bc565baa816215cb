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

TEXTS = {
    "nothing": "",
    "spaces": " ",
    "spaces before and after": "   a   b ",
    "newlines": "\n\n\na\n b\r\n\r\n",
    "tabs": "\t\ta\t b\n\t\tc",
    "rare spaces": "a\u00a0b\u3000c\u1680\u2000\u200ad\u2028\u2029\x0b\x0c\x85",
    "contractions": "Don't I'll we've they'RE he'd I'm it's 's'S'T a'b'sc ''''",
    "numbers": "1234567890 12 3.14 1,000 0x7f 1e-9",
    "other digits": "\u0663\u0664\u0665 \u096a\u096b \u2163 \u00bd \u00b2 \U0001d7d8\U0001d7d9",
    "emoji": "\U0001f600 a\U0001f44d\U0001f3fdb \U0001f1e9\U0001f1ea",
    "joined emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308",
    "combining marks": "e\u0301 a\u0308\u0323 " + "A\u0300\u0301\u0302" * 50,
    "Chinese, Japanese, Korean": "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3002\u4e2d\u6587\uff0c\ud55c\uad6d",
    "Korean letters": "\u1100\u1161\u11a8 \ud7a3\uac00",
    "right to left": "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "Thai and Hindi": "\u0e44\u0e17\u0e22 \u0928\u092e\u0938\u094d\u0924\u0947",
    "ligatures and title case": "\ufb01 \ufb02 \u01c5 \u02b0",
    "NUL": "a\x00b\x00",
    "control characters": "\x01\x02\x1f\x7f\x80\x9f",
    "byte order mark": "\ufeffa\ufeff",
    "replacement character": "\ufffd\ufffd a",
    "no characters": "\ufffe\uffff\U0001fffe\U0010ffff",
    "private use and tags": "\uf8ff\ue000\U000e0001\U000e0020",
    "zero width": "a\u200bb\u200cc\u200dd\u2060e",
    "names of special tokens": "<|bos|><|eos|> <|user|>hi<|end|><|assistant|>",
    "names of unused tokens": "<|unused 4100|>",
    "underscores": "_a_b__c___",
    "punctuation": "!!!???... $\u20ac\u00a3\u00a5 + = < > -- ->",
    "a long word": "x" * 5000,
    "many spaces": " " * 3000,
    "many newlines": "\n" * 1000,
    "many words": "ab " * 2000,
    "Rust": """\
#![allow(unused)]
impl<'a, T: Debug + 'static> Iterator for Foo<'a, T> {
    type Item = &'a [u8; 0x10];
    fn next(&mut self) -> Option<Self::Item> {
\t\tlet r#type = b'\\n'; // caf\u00e9 \u2014 dash
        println!("{:?} {}", self.x?, 1_000_u64.pow(2));
        None
    }
}
""",
}


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


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_has_the_same_tokens(
    text: str, model: LlamaCppVocabulary, tokenizer: Tokenizer
) -> None:
    assert model.tokenize(text) == tokenizer.encode(text)


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
