"""This file holds a lexer for Rust that is slow and plain: one character at a time, and no regular expression."""

from collections.abc import Iterator

from nanochat.rust.lexer import Kind, Token

__all__ = ["slow_tokens"]

_SPACE = "\t\n\x0b\x0c\r \x85\u200e\u200f\u2028\u2029"
_DIGITS = "0123456789"
_HEXADECIMAL = _DIGITS + "abcdefABCDEF"


def _starts_name(c: str) -> bool:
    return c == "_" or (c.isalpha() if c.isascii() else bool(c) and c not in _SPACE)


def _in_word(c: str) -> bool:
    return _starts_name(c) or (c != "" and c in _DIGITS)


def slow_tokens(source: str) -> list[Token]:
    """Return what `nanochat.rust.lexer.tokens` yields."""
    start = 1 if source[:1] == "\ufeff" else 0
    if source[start : start + 2] == "#!":
        code = [token for token in _Cursor(source, start + 2).tokens() if token.kind != "comment"]
        if not code or code[0].text != "[":
            line = source[start:].split("\n")[0]
            rest = _Cursor(source, start + len(line)).tokens()
            return [Token("comment", line, start), *rest]
    return [*_Cursor(source, start).tokens()]


class _Cursor:
    def __init__(self, source: str, at: int) -> None:
        self.source = source
        self.at = at

    def peek(self, ahead: int = 0) -> str:
        """Return a character that follows, nothing behind the end."""
        return self.source[self.at + ahead : self.at + ahead + 1]

    def tokens(self) -> Iterator[Token]:
        while self.at < len(self.source):
            start = self.at
            if self.peek() in _SPACE:
                self.at += 1
                continue
            kind = self.token()
            yield Token(kind, self.source[start : self.at], start)

    def token(self) -> Kind:
        """Go behind the token that starts here."""
        first, second, third = self.peek(), self.peek(1), self.peek(2)
        if first == "/" and second == "/":
            while self.peek() not in ("\n", ""):
                self.at += 1
            return "comment"
        if first == "/" and second == "*":
            return self.block()
        if first == "r" and second == "#" and _starts_name(third):
            self.at += 2
            self.word()
            return "name"
        if first == "r" and second in ("#", '"') and second:
            self.at += 1
            return self.raw_string()
        if first in ("b", "c") and second == "r" and third in ("#", '"') and third:
            self.at += 2
            return self.raw_string()
        if first in ("b", "c") and second == '"':
            self.at += 1
            return self.string()
        if first == "b" and second == "'":
            self.at += 1
            return self.char()
        if first == '"':
            return self.string()
        if first == "'":
            return self.quote()
        if _starts_name(first):
            self.word()
            return "name"
        if first in _DIGITS:
            return self.number()
        self.at += 2 if first + second in ("::", "->") else 1
        return "punctuation"

    def word(self) -> None:
        while _in_word(self.peek()):
            self.at += 1

    def suffix(self) -> None:
        if _starts_name(self.peek()):
            self.word()

    def block(self) -> Kind:
        depth = 0
        while self.peek():
            if self.peek() == "/" and self.peek(1) == "*":
                self.at += 2
                depth += 1
            elif self.peek() == "*" and self.peek(1) == "/":
                self.at += 2
                depth -= 1
                if depth == 0:
                    return "comment"
            else:
                self.at += 1
        return "open"

    def string(self) -> Kind:
        self.at += 1
        while self.peek():
            if self.peek() == "\\" and self.peek(1):
                self.at += 2
            elif self.peek() == '"':
                self.at += 1
                self.suffix()
                return "string"
            else:
                self.at += 1
        return "open"

    def raw_string(self) -> Kind:
        hashes = 0
        while self.peek() == "#":
            self.at += 1
            hashes += 1
        quote = self.peek()
        self.at += len(quote)
        if quote != '"':
            return "open"
        while self.peek():
            found = self.source[self.at : self.at + 1 + hashes]
            if found == '"' + "#" * hashes:
                self.at += len(found)
                self.suffix()
                return "string"
            self.at += 1
        return "open"

    def quote(self) -> Kind:
        if self.peek(2) == "'" or not _in_word(self.peek(1)):
            return self.char()
        if self.peek(1) == "r" and self.peek(2) == "#" and _starts_name(self.peek(3)):
            self.at += 3
            self.word()
            return "lifetime"
        self.at += 1
        self.word()
        if self.peek() == "'":
            self.at += 1
            return "char"
        return "lifetime"

    def char(self) -> Kind:
        self.at += 1
        if self.peek(1) == "'" and self.peek() != "\\":
            self.at += 2
            self.suffix()
            return "char"
        while True:
            c = self.peek()
            if c == "'":
                self.at += 1
                self.suffix()
                return "char"
            if c in ("", "/") or (c == "\n" and self.peek(1) != "'"):
                return "open"
            self.at += 2 if c == "\\" and self.peek(1) else 1

    def digits(self, allowed: str) -> bool:
        start = self.at
        while self.peek() and self.peek() in allowed + "_":
            self.at += 1
        return self.source[start : self.at].strip("_") != ""

    def number(self) -> Kind:
        base = self.peek(1) if self.peek() == "0" else ""
        if base and base in "box":
            self.at += 2
            some = self.digits(_HEXADECIMAL if base == "x" else _DIGITS)
        else:
            some = self.digits(_DIGITS)
        if some:
            self.fraction()
        self.suffix()
        return "number"

    def fraction(self) -> None:
        if self.peek() == "." and self.peek(1) != "." and not _starts_name(self.peek(1)):
            self.at += 1
            if not (self.peek() and self.peek() in _DIGITS):
                return
            self.digits(_DIGITS)
        elif self.peek() not in ("e", "E"):
            return
        if self.peek() in ("e", "E"):
            self.at += 1
            self.at += 1 if self.peek() in ("+", "-") else 0
            self.digits(_DIGITS)
