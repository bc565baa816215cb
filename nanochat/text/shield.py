"""This file holds what keeps the words of a conversation apart from the special tokens that its template writes.

A template joins both to one text. Before that, names of special tokens in what callers give are put between marks, and
marks part what might become such a name beside what the template writes. Templates may still look for a name, or split
a text at it; what they cut or escape stays told apart. Only a template that takes words apart itself and joins them to
such a name, as no known one does, can write it for a caller.
"""

import json
import re
from collections.abc import Iterator
from functools import lru_cache

from nanochat.errors import InputError
from nanochat.text.codec import TextCodec

__all__ = ["Shield"]

# A character that stands for no text may mark a place in one: Unicode leaves these 32 to programs.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
# Digits of the number of a name, by which its own marks are told from those of another beside it.
_DIGITS = 8
_IDENTIFIER = re.compile(r"\w+")


class Shield:
    """Marks for one conversation.

    Parameters
    ----------
    tokenizer : TextCodec
        Whose special tokens nobody but the template may write.
    data : object
        All that the template will see, of JSON's types.

    Raises
    ------
    InputError
        If the data hold nearly all of the characters that could be marks.
    """

    def __init__(self, tokenizer: TextCodec, data: object) -> None:
        text = json.dumps(data, ensure_ascii=False)
        free = [mark for mark in _MARKS if mark not in text and _escaped(mark) not in text]
        if len(free) < 3 + _DIGITS:
            raise InputError(
                f"the messages hold more than {len(_MARKS) - 3 - _DIGITS} of the characters from U+FDD0 to U+FDEF, "
                "which mark places here: leave them out"
            )
        self._before, self._after, self._between, *self._digits = free[: 3 + _DIGITS]
        self._tokenizer = tokenizer
        self._names = tuple(sorted(tokenizer.specials, key=len, reverse=True))
        self._pattern = re.compile("|".join(map(re.escape, self._names)) or "(?!)")
        self._behind = re.compile(f"{self._after}([{''.join(self._digits)}]*)")
        marks = "".join(free[: 3 + _DIGITS])
        self._any_mark = re.compile(f"[{marks}]")
        # What writes JSON or Python's literals may escape them, and more than once.
        self._escapes = re.compile(r"\\+u(" + "|".join(f"{ord(mark):04x}" for mark in marks) + ")")

    def mark(self, value: object) -> object:
        """A copy of the data with every text in it marked; roles and keys that are plain words stay as they are."""
        match value:
            case str(text):
                return self._mark(text)
            case list():
                return [self.mark(item) for item in value]
            case dict():
                return {
                    key if _IDENTIFIER.fullmatch(key) else self._mark(key): (
                        item if key == "role" and _is_word(item) else self.mark(item)
                    )
                    for key, item in value.items()
                }
            case _:
                return value

    def tokens(self, text: str) -> list[int]:
        """Tokens of what a template made of marked data."""
        text = self._unescaped(text)
        whole = self._tokenizer.encode(self.plain(text), specials=True)
        specials = self._tokenizer.specials
        written = [specials[part] for part, special in self._parts(text) if special]
        if [token for token in whole if token in self._tokenizer.special_ids] == written:
            return whole
        # Some name in the text is not the template's: it is spelled in other tokens.
        tokens: list[int] = []
        for part, special in self._parts(text):
            clean = self._any_mark.sub("", part)
            tokens += [specials[part]] if special else self._tokenizer.encode(clean)
        return tokens

    def plain(self, text: str) -> str:
        """What a template made of marked data, without the marks."""
        return self._any_mark.sub("", self._unescaped(text))

    def _unescaped(self, text: str) -> str:
        return self._escapes.sub(lambda found: chr(int(found[1], 16)), text)

    def _mark(self, text: str) -> str:
        bare = text.strip()
        if not bare:
            return text
        # A template may ask for a plain word, and writes roles between the signs of a name.
        inside = not _is_word(bare) and any(bare in name for name in self._names)
        beginnings, endings, longest = _pieces(self._names)
        lengths = range(1, min(longest, len(bare)) + 1)
        ends = any(bare[-length:] in beginnings for length in lengths)
        starts = any(bare[:length] in endings for length in lengths)
        text = self._pattern.sub(
            lambda found: f"{self._before}{found[0]}{self._after}{self._code(found[0])}", text
        )
        if ends or inside:
            end = len(text.rstrip())
            text = text[:end] + self._between + text[end:]
        if starts or inside:
            start = len(text) - len(text.lstrip())
            text = text[:start] + self._between + text[start:]
        return text

    def _code(self, name: str) -> str:
        """The number of a name, in marks."""
        number, code = self._names.index(name), ""
        while number or not code:
            number, digit = divmod(number, _DIGITS)
            code += self._digits[digit]
        return code

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """What stands between the special tokens that the template wrote, and these, which are told apart."""
        start = 0
        for found in self._pattern.finditer(text):
            if not self._is_given(found, text):
                yield text[start : found.start()], False
                yield found[0], True
                start = found.end()
        yield text[start:], False

    def _is_given(self, found: re.Match[str], text: str) -> bool:
        """Whether a name is a caller's: one of its marks is left, of which a template may have cut the other."""
        if text[: found.start()].endswith(self._before):
            return True
        behind = self._behind.match(text, found.end())
        # Another name's marks may stand behind what the template wrote; what is left of a code may be any's.
        return behind is not None and self._code(found[0]).startswith(behind[1])


@lru_cache(maxsize=8)
def _pieces(names: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str], int]:
    """What names begin with, what they end with, neither of them whole, and the length of the longest of these."""
    beginnings = frozenset(name[:i] for name in names for i in range(1, len(name)))
    endings = frozenset(name[i:] for name in names for i in range(1, len(name)))
    return beginnings, endings, max(map(len, beginnings), default=0)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _IDENTIFIER.fullmatch(value) is not None


def _escaped(mark: str) -> str:
    return f"\\u{ord(mark):04x}"
