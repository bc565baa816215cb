"""This file holds what keeps the words of a conversation apart from the special tokens that its template writes.

A template joins both to one text. Before that, names of special tokens in what callers give are put between marks, and
marks part what might become such a name beside what the template writes. Templates may still look for a name, or split
a text at it.
"""

import json
import re
from collections.abc import Iterator

from nanochat.errors import InputError
from nanochat.text.codec import TextCodec

__all__ = ["Shield"]

# A character that stands for no text may mark a place in one: Unicode leaves these 32 to programs.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]


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
        if len(free) < 3:
            raise InputError(
                "the messages hold the characters from U+FDD0 to U+FDEF, which mark places here: leave three out"
            )
        self._before, self._after, self._between = free[:3]
        self._tokenizer = tokenizer
        self._names = sorted(tokenizer.specials, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, self._names)) or "(?!)")

    def mark(self, value: object) -> object:
        """A copy of the data with every text in it marked."""
        match value:
            case str(text):
                return self._mark(text)
            case list():
                return [self.mark(item) for item in value]
            case dict():
                return {key: self.mark(item) for key, item in value.items()}
            case _:
                return value

    def tokens(self, text: str) -> list[int]:
        """Tokens of what a template made of marked data."""
        for mark in (self._before, self._after, self._between):
            # What writes JSON or Python's literals may escape it.
            text = text.replace(_escaped(mark), mark)
        clean = self._without_marks(text)
        whole = self._tokenizer.encode(clean, specials=True)
        specials = self._tokenizer.specials
        written = [specials[part] for part, special in self._parts(text) if special]
        if [token for token in whole if token in self._tokenizer.special_ids] == written:
            return whole
        # Some name in the text is not the template's: it is spelled in other tokens.
        tokens: list[int] = []
        for part, special in self._parts(text):
            tokens += (
                [specials[part]] if special else self._tokenizer.encode(self._without_marks(part))
            )
        return tokens

    def _mark(self, text: str) -> str:
        text = self._pattern.sub(rf"{self._before}\g<0>{self._after}", text)
        bare = text.strip()
        if any(bare.endswith(name[:i]) for name in self._names for i in range(1, len(name))):
            end = len(text.rstrip())
            text = text[:end] + self._between + text[end:]
        if any(bare.startswith(name[i:]) for name in self._names for i in range(1, len(name))):
            start = len(text) - len(text.lstrip())
            text = text[:start] + self._between + text[start:]
        return text

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """What stands between the special tokens that the template wrote, and these, which are told apart."""
        start = 0
        for found in self._pattern.finditer(text):
            around = (
                text[max(found.start() - 1, 0) : found.start()],
                text[found.end() : found.end() + 1],
            )
            if around != (self._before, self._after):
                yield text[start : found.start()], False
                yield found[0], True
                start = found.end()
        yield text[start:], False

    def _without_marks(self, text: str) -> str:
        for mark in (self._before, self._after, self._between):
            text = text.replace(mark, "")
        return text


def _escaped(mark: str) -> str:
    return f"\\u{ord(mark):04x}"
