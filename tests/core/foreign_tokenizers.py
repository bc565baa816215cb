"""This file holds small tokenizers as other people make them, trained with the `tokenizers` library."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

# Llama 3's regular expression.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = ["to be or not to be, that is the question 1234\n", "fn main() { wörld 🙂 }"] * 8
CHAT_TEMPLATE = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


@cache
def llama_3() -> Tokenizer:
    """Byte-level BPE with Llama 3's split and a start token; specials at the end, as there."""
    library = Tokenizer(models.BPE(ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=320,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    names = ("begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id")
    library.add_special_tokens([f"<|{name}|>" for name in names])
    start = "<|begin_of_text|>"
    library.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, library.token_to_id(start))]
    )
    return library


@cache
def sentencepiece() -> Tokenizer:
    """BPE as SentencePiece's of Llama 2: a mark for spaces, one before each text, and pieces for single bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    library = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, special_tokens=["<unk>", "<s>", "</s>", *pieces]
    )
    library.train_from_iterator(TEXTS, trainer)
    # Bytes are part of the vocabulary, but are not found in texts by their names.
    data = json.loads(library.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(data))


@cache
def unigram() -> Tokenizer:
    """SentencePiece's other model, whose vocabulary holds the names of its special tokens, too."""
    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    library.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=60,
            show_progress=False,
            unk_token="<unk>",
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=["<", ">", "/"],
        ),
    )
    return library


def write(
    library: Tokenizer,
    directory: Path,
    *,
    settings: Mapping[str, object] | None = None,
    generation: Mapping[str, object] | None = None,
) -> Path:
    """Write the files of a tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(library.to_str())
    for name, fields in (
        ("tokenizer_config.json", settings),
        ("generation_config.json", generation),
    ):
        if fields is not None:
            (directory / name).write_text(json.dumps(fields))
    return directory


def write_llama_3(directory: Path) -> Path:
    """Write `llama_3` as a chat model has it."""
    return write(
        llama_3(),
        directory,
        settings={
            "bos_token": "<|begin_of_text|>",
            "eos_token": {"__type": "AddedToken", "content": "<|end_of_text|>"},
            "chat_template": CHAT_TEMPLATE,
        },
        generation={
            "bos_token_id": llama_3().token_to_id("<|begin_of_text|>"),
            "eos_token_id": [
                llama_3().token_to_id(name) for name in ("<|end_of_text|>", "<|eot_id|>")
            ],
        },
    )
