"""Texts of many scripts are split as Qwen3.5's own tokenizer and llama.cpp split them: a word keeps its marks."""

import json
import platform
import random
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import pre_tokenizers, trainers
from transformers import Qwen3_5Tokenizer

from nanochat.export.gguf.container import read_gguf
from nanochat.export.gguf.splits import split_name
from nanochat.export.gguf.vocabulary import read_vocabulary
from nanochat.text.library import load_tokenizer
from tests.export.foreign_ggufs import WIDTH, Case, vocabulary, write
from tests.export.llama_cpp_vocabulary import LlamaCppVocabulary
from tests.export.texts import ODD_STRINGS

ROWS = 2048
# First and last character of letters, and of the marks that go with them.
SCRIPTS = {
    "latin": ("az", "\u0300\u036f"),
    "vietnamese": ("aaeeiioouuyy", "\u0302\u0303\u0306\u031b\u0300\u0301\u0309\u0323"),
    "greek": ("\u03b1\u03c9", "\u0300\u0345"),
    "cyrillic": ("\u0430\u044f", "\u0483\u0487"),
    "hebrew": ("\u05d0\u05ea", "\u0591\u05bd"),
    "arabic": ("\u0627\u064a", "\u064b\u065f"),
    "devanagari": ("\u0905\u0939", "\u093e\u094d"),
    "bengali": ("\u0995\u09a8", "\u09be\u09cd"),
    "tamil": ("\u0b95\u0b95\u0b99\u0b9a\u0ba3\u0ba4", "\u0bbe\u0bc2\u0bc6\u0bc8\u0bca\u0bcd"),
    "thai": ("\u0e01\u0e2e", "\u0e47\u0e4e"),
    "khmer": ("\u1780\u17a2", "\u17b6\u17d1"),
    "kana": ("\u3041\u3096", "\u3099\u309a"),
    "han": ("\u4e00\u9fa5", ""),
    "hangul": ("\uac00\ud7a3", ""),
}
BETWEEN = [
    *(
        " ",
        " ",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\n\n",
        "\t",
        "\u00a0",
        "\u3000",
        "\u200d",
        "-",
        "_",
        "'s",
    ),
    *(
        "'LL",
        ", ",
        ". ",
        "!?",
        "(",
        ")",
        "1",
        "12",
        "2026",
        "\u0663\u0664",
        "\u096b",
        "\u00b2",
        "\u2167",
    ),
    *(
        "\U0001f600",
        "\u2764\ufe0f",
        "\U0001f469\u200d\U0001f4bb",
        "\U0001f1e9\U0001f1ea",
        "\u20dd",
        "\u0301",
    ),
]
on_linux_x86 = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the prebuilt llama.cpp is for Linux x86-64",
)


@cache
def lines() -> tuple[str, ...]:
    """2,000 lines, each of words of one to three scripts, with marks in every place that there is."""
    generator = random.Random(0)

    def characters(of: str) -> list[str]:
        # Two are the ends of a range, others a list.
        return [*map(chr, range(ord(of[0]), ord(of[1]) + 1))] if len(of) == 2 else [*of]

    known = {name: (characters(a), characters(b)) for name, (a, b) in SCRIPTS.items()}

    def word(letters: list[str], marks: list[str]) -> Iterator[str]:
        for _ in range(generator.randint(1, 6)):
            yield generator.choice(letters)
            while marks and generator.random() < 0.4:
                yield generator.choice(marks)

    def line() -> str:
        scripts = generator.sample(list(known), generator.randint(1, 3))
        parts: list[str] = []
        for _ in range(generator.randint(2, 9)):
            parts += word(*known[generator.choice(scripts)])
            parts.append(generator.choice(BETWEEN))
        return "".join(parts)

    return tuple(line() for _ in range(2000))


@cache
def their_tokenizer() -> Qwen3_5Tokenizer:
    """Transformers' own, with merges of such lines that are not split."""
    tokenizer = Qwen3_5Tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=ROWS - 8,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
    )
    library = tokenizer.backend_tokenizer
    split = library.pre_tokenizer
    # Merges that no split would allow tell where each one splits.
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.train_from_iterator(lines(), trainer)
    library.pre_tokenizer = split
    return tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = vocabulary(their_tokenizer().backend_tokenizer)
    count = len(keys["tokenizer.ggml.tokens"])
    kinds = [*keys["tokenizer.ggml.token_type"], *[int(gguf.TokenType.UNUSED)] * (ROWS - count)]
    changes: dict[str, Any] = {
        **keys,
        "tokenizer.ggml.pre": "qwen35",
        "tokenizer.ggml.tokens": [
            *keys["tokenizer.ggml.tokens"],
            *(f"[PAD{token}]" for token in range(count, ROWS)),
        ],
        "tokenizer.ggml.token_type": kinds,
    }
    table = (
        (ROWS, WIDTH),
        int(gguf.GGMLQuantizationType.F16),
        np.zeros(ROWS * WIDTH * 2, np.uint8),
    )
    return write(
        tmp_path_factory.mktemp("qwen35") / "x.gguf",
        Case(architecture="qwen3"),
        changes=changes,
        changed_tensors={"token_embd.weight": table},
    )


def test_lines_hold_marks_that_a_split_without_them_would_part() -> None:
    text = "".join(lines())

    assert len(lines()) == 2000
    assert sum(unicodedata.category(c) == "Mn" for c in text) > 10_000
    assert {unicodedata.category(c)[0] for c in text} == {"L", "M", "N", "P", "S", "Z", "C"}


@on_linux_x86
def test_a_file_has_the_tokens_of_llama_cpp(path: Path) -> None:
    tokenizer = read_vocabulary(read_gguf(path).metadata, rows=ROWS)
    texts = [*lines(), *ODD_STRINGS]

    with closing(LlamaCppVocabulary(path, threads=1, context=64)) as theirs:
        different = [text for text in texts if theirs.tokenize(text) != tokenizer.encode(text)]

    assert different == []


def test_a_file_has_the_tokens_of_transformers_for_composed_texts(path: Path) -> None:
    # GGUF files have no place to ask for what composes them.
    tokenizer = read_vocabulary(read_gguf(path).metadata, rows=ROWS)
    theirs = their_tokenizer().backend_tokenizer
    texts = [unicodedata.normalize("NFC", text) for text in lines()]

    different = [
        text
        for text in texts
        if theirs.encode(text, add_special_tokens=False).ids != tokenizer.encode(text)
    ]

    assert different == []


def test_a_folder_has_the_tokens_of_transformers(tmp_path: Path) -> None:
    their_tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)

    expected = their_tokenizer()(list(lines()), add_special_tokens=False)["input_ids"]

    assert tokenizer.encode_batch(list(lines())) == expected


def test_a_folder_of_it_is_written_under_its_name() -> None:
    data = json.loads(their_tokenizer().backend_tokenizer.to_str())

    assert split_name(data, whole=False) == "qwen35"
