"""This file holds what is not given to a Rust compiler at all, and what is not compiled together with other sources.

Neither is a wall: what runs is held by a sandbox, and judged from outside. The first saves the time that a compiler
takes to refuse something, or to die of it; the second keeps a source out of the verdicts of others.
"""

from collections.abc import Iterator, Sequence

from nanochat.errors import counted
from nanochat.rust.lexer import BRACKETS, Token, code_tokens

__all__ = ["needs_own_crate", "refusal"]

_MAX_BYTES = 2**16
_MAX_LINES = 2_000
_MAX_NESTING = 256
# Tokens that nothing separates make one expression or type, as deep as it is long. rustc 1.95 dies of 1,226 `return`
# in a row, of 1,770 `?`, of 2,975 `&`.
_MAX_UNSEPARATED = 1_000

_KEYWORDS = {"extern", "unsafe"}
_ATTRIBUTES = {"export_name", "global_allocator", "link_section", "macro_export", "no_mangle"}
_MACROS = {
    "asm",
    "env",
    "global_asm",
    "include",
    "include_bytes",
    "include_str",
    "naked_asm",
    "option_env",
}
_LIBRARIES = {"alloc", "core", "std"}
_MODULES = {"fs", "net", "os", "process"}

# Attributes that concern nothing but what they stand on.
_PRIVATE_ATTRIBUTES = {"allow", "derive", "doc", "inline", "must_use"}
# Names by which a source reaches out of its module, makes something that others see, or learns where it is.
_PUBLIC_NAMES = {
    *("$", "crate", "extern", "macro", "macro_export", "macro_rules", "macro_use", "mod", "super"),
    *("asm", "global_asm", "include", "include_bytes", "include_str", "naked_asm", "unsafe"),
    *("Location", "TypeId", "file", "module_path", "type_id", "type_name", "type_name_of_val"),
}
_BEFORE_TYPES = {"->", ":", "(", "[", ",", "<", "&", "=", "+", "mut"}


def refusal(source: str) -> str | None:
    r"""Why a source is not compiled, in a sentence that names the line; None if it may be.

    Refused is what is too large or too deep or no UTF-8, and words that a pure function does not need: ``unsafe``,
    ``extern``, attributes of the file (``#![..]``) and those that name symbols, files or the allocator, macros that
    hold assembly or read files or the environment, and the standard library's modules ``fs``, ``net``, ``os`` and
    ``process``, by their paths. In comments and in strings all words may stand.

    Examples
    --------
    >>> refusal("fn f() {\n    std::process::exit(0) // not unsafe\n}")
    'line 2 has `std::process`, which is refused'
    >>> refusal('fn f() -> &str { "unsafe" }')
    """
    if excess := _excess(source):
        return excess
    code = code_tokens(source)
    for found in (_too_deep(code), _forbidden(code)):
        for token, what in found:
            return f"line {_line(source, token.start)} has {what}, which is refused"
    return None


def needs_own_crate(source: str) -> bool:
    """Whether a source must be judged alone, for it might reach another one in its crate, or be heard there.

    The others are modules of edition 2018 or later, each in a file of its own. A source without any of these stays
    by itself: paths to the crate or to a parent, modules, macros, ``impl`` of something for something (which changes
    what types a compiler infers elsewhere), attributes but for a few, and brackets or quotes without a partner. Where
    in doubt the answer is yes, which is always right, and slower.

    Examples
    --------
    >>> needs_own_crate("fn f(x: &impl Fn() -> i32) -> i32 { x() }")
    False
    >>> needs_own_crate("fn f() -> i32 { super::other::f() }")
    True
    """
    code = code_tokens(source)
    texts = [*(_plain(token) for token in code), "", ""]
    closers: list[str] = []
    for index, token in enumerate(code):
        text = texts[index]
        if token.kind == "open" or text in _PUBLIC_NAMES:
            return True
        if text == "#" and not (
            texts[index + 1] == "[" and texts[index + 2] in _PRIVATE_ATTRIBUTES
        ):
            return True
        if text == "impl" and not _is_before_type(code[index - 1] if index else None):
            return True
        if text in BRACKETS:
            closers.append(BRACKETS[text])
        elif text in BRACKETS.values() and (not closers or closers.pop() != text):
            return True
    return bool(closers)


def _is_before_type(token: Token | None) -> bool:
    return token is not None and (token.kind == "lifetime" or token.text in _BEFORE_TYPES)


def _plain(token: Token) -> str:
    """A token's text; a raw name means what it means without the mark."""
    return token.text.removeprefix("r#") if token.kind == "name" else token.text


def _excess(source: str) -> str | None:
    try:
        size = len(source.encode())
    except UnicodeEncodeError as error:
        line = _line(source, error.start)
        return f"line {line} has half of a character, which no file can hold"
    if size > _MAX_BYTES:
        return f"the source has {size:,} bytes, more than {_MAX_BYTES:,}"
    num_lines = 1 + source.removesuffix("\n").count("\n")
    if num_lines > _MAX_LINES:
        return f"the source has {counted(num_lines, 'line')}, more than {_MAX_LINES:,}"
    nul = source.find("\0")
    return None if nul < 0 else f"line {_line(source, nul)} has a NUL, which is refused"


def _line(source: str, start: int) -> int:
    return 1 + source.count("\n", 0, start)


def _too_deep(code: Sequence[Token]) -> Iterator[tuple[Token, str]]:
    """Yield where brackets, or the tokens in them that nothing separates, are more than a compiler's stack can bear."""
    closers: list[str] = []
    # How many there are since the last separator, within each open bracket, and in all of them.
    lengths = [0]
    total = 0
    for token in code:
        lengths[-1] += 1
        total += 1
        if token.text in BRACKETS:
            closers.append(BRACKETS[token.text])
            lengths.append(0)
        elif closers and token.text == closers[-1]:
            closers.pop()
            total -= lengths.pop()
        if token.text in (";", ",", "}"):
            total -= lengths[-1]
            lengths[-1] = 0
        if len(closers) > _MAX_NESTING:
            yield token, f"brackets more than {_MAX_NESTING} deep"
        if total > _MAX_UNSEPARATED:
            yield token, f"an expression of more than {_MAX_UNSEPARATED:,} tokens"


def _forbidden(code: Sequence[Token]) -> Iterator[tuple[Token, str]]:
    """Yield words that are refused, and what is refused about them."""
    texts = [*(_plain(token) for token in code), "", ""]
    in_use = False
    for index, token in enumerate(code):
        text, following, third = texts[index : index + 3]
        if token.text == "use":
            # Behind a bound, a list of what is captured.
            in_use = following != "<"
        elif text == ";":
            in_use = False
        elif token.text in _KEYWORDS or text in _ATTRIBUTES:
            yield token, f"`{text}`"
        elif text == "#" and following == "!" and third == "[":
            yield token, "an attribute of the whole file"
        elif text == "#" and following == "[" and _names_file(texts, index + 1):
            yield token, "an attribute with `path`"
        elif text in _MACROS and (
            (following == "!" and third in BRACKETS) or (in_use and following == "as")
        ):
            yield token, f"`{text}!`"
        elif text in _LIBRARIES and in_use and following == "as":
            yield token, f"`{text}` under another name"
        elif text in _LIBRARIES and following == "::":
            for place in _branches(texts, index + 2):
                branch, behind = texts[place : place + 2]
                if branch in _MODULES or branch in ("*", "$"):
                    yield code[place], f"`{text}::{branch}`"
                elif branch == "self" and behind == "as":
                    yield code[place], f"`{text}` under another name"


def _names_file(texts: Sequence[str], index: int) -> bool:
    """Whether the attribute whose bracket opens at a place sets ``path``."""
    depth = 0
    while index < len(texts) - 1:
        depth += (texts[index] == "[") - (texts[index] == "]")
        if not depth:
            return False
        if texts[index] == "path" and texts[index + 1] == "=":
            return True
        index += 1
    return False


def _branches(texts: Sequence[str], index: int) -> Iterator[int]:
    """Where the names stand that a path goes on with: at a place, or, if a group opens there, throughout that."""
    if texts[index] != "{":
        yield index
        return
    # Whether there are names between the path and each brace that is open.
    far = [False]
    for place in range(index + 1, len(texts) - 1):
        before, text = texts[place - 1 : place + 1]
        if text == "{":
            far.append(far[-1] or before == "::")
        elif text == "}":
            far.pop()
            if not far:
                return
        elif not far[-1] and before in ("{", ","):
            yield place
