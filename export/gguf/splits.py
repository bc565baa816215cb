"""This file holds the ways to split a text before byte-level BPE, for which llama.cpp has names.

References
----------
.. [1] github.com/ggml-org/llama.cpp, src/llama-vocab.cpp, commit 0c1e570.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DEFAULT", "SPLITS", "Split", "split_name"]

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN_2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
# Marks, such as vowels of Indic scripts and accents that stand apart, belong to words.
_QWEN_3_5 = _QWEN_2.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)
_LLAMA_3 = _QWEN_2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_DEEPSEEK_3 = (
    r"\p{N}{1,3}",
    r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# What llama.cpp takes where a file has no name for it.
DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Split:
    """How a text is split before it is encoded: by one expression after the other.

    `whole`: a part that is a token becomes that one, whatever the merges say. `adds_bos`: whether a text has a start
    where the file says nothing of it.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    adds_bos: bool = False


SPLITS = {
    DEFAULT: Split(patterns=(r"[\p{P}$+<=>^~|]+", _GPT_2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "falcon": Split(patterns=(r"[\p{P}$+<=>^~|`]+", _GPT_2, r"[0-9][0-9][0-9]")),
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "trillion", "gigachat", "mellum"),
        Split(patterns=(_GPT_2,)),
    ),
    **dict.fromkeys(
        ("starcoder", "smollm", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        Split(patterns=(r"\p{N}", _GPT_2)),
    ),
    **dict.fromkeys(
        ("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan", "grok-2"),
        Split(patterns=(_QWEN_2,)),
    ),
    "qwen35": Split(patterns=(_QWEN_3_5,)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), Split(patterns=(_LLAMA_3,))),
    **dict.fromkeys(
        # The one with an underscore is bitnet.cpp's.
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "falcon_e", "pixtral", "lfm2"),
        Split(patterns=(_LLAMA_3,), whole=True, adds_bos=True),
    ),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), Split(patterns=_DEEPSEEK_3)),
}


def split_name(data: Mapping[str, object], *, whole: bool) -> str | None:
    """The name of what a ``tokenizer.json`` asks for, with `Split.whole`; None if there is none."""
    patterns = _patterns(data.get("pre_tokenizer"))
    if patterns is None:
        return None
    wanted = tuple(map(_plain, patterns))
    for name, split in SPLITS.items():
        if tuple(map(_plain, split.patterns)) == wanted and split.whole == whole:
            return name
    return None


def _patterns(pre_tokenizer: object) -> list[str] | None:
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*steps, last]}:
            pass
        case _:
            steps, last = [], pre_tokenizer
    patterns: list[str] = []
    for step in steps:
        match step:
            case {
                "type": "Split",
                "pattern": {"Regex": str(pattern)},
                "behavior": "Isolated",
                "invert": False,
            }:
                patterns.append(pattern)
            case {"type": "Digits", "individual_digits": True}:
                patterns.append(r"\p{N}")
            case _:
                return None
    match last:
        case {"type": "ByteLevel", "add_prefix_space": False, **others}:
            return [*patterns, _GPT_2] if others.get("use_regex", True) else patterns
    return None


def _plain(pattern: str) -> str:
    """The same with each character written in one way."""
    pattern = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), pattern)
    return pattern.replace("\r", r"\r").replace("\n", r"\n").replace(r"\"", '"')
