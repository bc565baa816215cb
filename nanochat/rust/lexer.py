"""This file holds a lexer for Rust: the tokens of a source text, which may be cut off anywhere.

What rustc takes is cut into the same tokens as rustc's, but for operators: ``::`` and ``->`` are one token, any other
character that belongs to no word is a token of its own. What rustc rejects gets tokens all the same; nothing is raised.

Two simplifications tell apart only texts that rustc rejects: names may have every character beyond ASCII that is not
white space, and prefixes that are reserved (``f"..."``, ``k#x``) are names.

References
----------
.. [1] The Rust Reference, "Tokens". doc.rust-lang.org/reference/tokens.html
.. [2] github.com/rust-lang/rust, compiler/rustc_lexer/src/lib.rs, for what the reference leaves open.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

__all__ = [
    "BEYOND_ASCII",
    "BRACKETS",
    "CHAR_BODY",
    "NAME_START",
    "STRING_BODY",
    "WORD",
    "Kind",
    "Token",
    "code_tokens",
    "start_of_code",
    "tokens",
]

Kind = Literal["comment", "string", "char", "lifetime", "open", "name", "number", "punctuation"]

BRACKETS = {"(": ")", "[": "]", "{": "}"}

# Beyond ASCII these leave out white space: U+0085, U+200E, U+200F, U+2028 and U+2029.
BEYOND_ASCII = r"\x80-\x84\x86-\u200d\u2010-\u2027\u202a-\U0010ffff"
NAME_START = rf"[A-Za-z_{BEYOND_ASCII}]"
WORD = rf"[0-9A-Za-z_{BEYOND_ASCII}]"
# What may stand between quotes. That of a character ends before a comment and with the line, so that a quote too many
# does not hide what follows.
STRING_BODY = r'(?:[^"\\]|\\.)*+'
CHAR_BODY = r"(?:[^'\\/\n]|\\.|\n(?='))*+"

# Every repetition is possessive: the time is linear in the text, and no stack grows.
_TOKEN = re.compile(
    rf"""
    [\t-\r\ \x85\u200e\u200f\u2028\u2029]*+
    (?:
        (?P<name> (?: r\#(?={NAME_START}) | (?! b?+' | [bc]?+r?+" | [bc]?+r\# ) ) {NAME_START}{WORD}*+ )
      | (?P<punctuation> :: | -> | [^0-9A-Za-z_"'/{BEYOND_ASCII}] | /(?![/*]) )
      | (?P<comment> //[^\n]*+ )
      | (?P<block> /\* )
      | (?P<string>
            (?: [bc]?+" {STRING_BODY} "
              | [bc]?+r(?P<hashes>\#*+)" [^"]*+ (?: "(?!(?P=hashes)) [^"]*+ )*+ "(?P=hashes) )
            (?: {NAME_START}{WORD}*+ )?+ )
      | (?P<char>
            (?: '[^\\]' | '(?!{WORD}){CHAR_BODY}' | b'[^\\]' | b'{CHAR_BODY}' )
            (?: {NAME_START}{WORD}*+ )?+
          | '{WORD}++' )
      | (?P<lifetime> '(?:r\#(?={NAME_START}))?+{WORD}++ )
      | (?P<open>
            b?+'{CHAR_BODY}\\?+
          | [bc]?+r?+".*+
          | (?: [bc]r\#++ | r\#(?!{NAME_START})\#*+ ) (?: ".*+ | .?+ ) )
      | (?P<number>
            (?: 0[bo]_*+(?![0-9]) | 0x_*+(?![0-9A-Fa-f])
              | (?: 0x[0-9A-Fa-f_]++ | 0[bo][0-9_]++ | [0-9][0-9_]*+ )
                (?: \.(?!\.|{NAME_START}) (?: [0-9][0-9_]*+ (?: [eE][-+]?+[0-9_]*+ )?+ )?+
                  | [eE][-+]?+[0-9_]*+ )?+ )
            (?: {NAME_START}{WORD}*+ )?+ )
      | \Z
    )
    """,
    re.VERBOSE | re.DOTALL,
)
_BLOCK_MARK = re.compile(r"/\*|\*/")
_BLOCK = _TOKEN.groupindex["block"]
_KINDS: dict[int, Kind] = {_TOKEN.groupindex[kind]: kind for kind in get_args(Kind)}
_new = tuple.__new__


class Token(NamedTuple):
    """One token: its kind, its text, and where in the source that starts, in characters.

    The kind ``open`` is a comment, a string or a character whose end is missing; a ``comment`` is for people or for
    rustdoc; a ``name`` may be a keyword, and may have ``r#`` in front.
    """

    kind: Kind
    text: str
    start: int


def tokens(source: str) -> Iterator[Token]:
    """Yield the tokens of a source text: all that is not white space.

    Parameters
    ----------
    source : str
        A file's text, or the beginning of one. A byte order mark is passed over, and a first line that names an
        interpreter is a comment.

    Examples
    --------
    >>> [token.text for token in tokens("let c = '{'; // a brace")]
    ['let', 'c', '=', "'{'", ';', '// a brace']
    >>> [*tokens("'a /* not yet")][-1]
    Token(kind='open', text='/* not yet', start=3)
    """
    start = start_of_code(source)
    if start > 1:
        line = source[:start].lstrip("\ufeff")
        yield Token("comment", line, start - len(line))
    yield from _tokens_from(source, start)


def code_tokens(source: str) -> list[Token]:
    """Return the tokens that mean something to a compiler: all but the comments."""
    return [token for token in tokens(source) if token.kind != "comment"]


def start_of_code(source: str) -> int:
    """Where the first token may start: behind a byte order mark, and a first line that names an interpreter."""
    start = 1 if source.startswith("\ufeff") else 0
    if not source.startswith("#!", start):
        return start
    # An attribute of the file starts in the same way.
    following = (token.text for token in _tokens_from(source, start + 2) if token.kind != "comment")
    if next(following, "") == "[":
        return start
    end = source.find("\n", start)
    return len(source) if end < 0 else end


def _tokens_from(source: str, position: int) -> Iterator[Token]:
    while position >= 0:
        matches = _TOKEN.finditer(source, position)
        position = -1
        for match in matches:
            group = match.lastindex
            if group is None:
                return
            start = match.start(group)
            if group == _BLOCK:
                # Blocks hold blocks, which an expression cannot count.
                position = _end_of_block(source, match.end())
                end = len(source) if position < 0 else position
                yield Token("open" if position < 0 else "comment", source[start:end], start)
                break
            # A third of the time is making these; their own constructor takes twice as long.
            yield _new(Token, (_KINDS[group], match[group], start))


def _end_of_block(source: str, position: int) -> int:
    depth = 1
    for mark in _BLOCK_MARK.finditer(source, position):
        depth += 1 if mark[0] == "/*" else -1
        if not depth:
            return mark.end()
    return -1
