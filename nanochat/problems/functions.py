"""This file holds the reading of Rust files whose functions are problems: comments, directives, signature, body.

A comment ``// word: text`` between a function's description and the function is a directive; one word may stand on
several lines. Where none is needed, none is written.

* ``inputs: n in 0..=9, text in words``: of which values arguments are drawn, see `nanochat.problems.strategy`.
* ``edges: (0, "a"); (9, "")``: arguments that are always tried. A single argument stands without parentheses, lists
  and the pairs of maps stand in brackets.
* ``equivalent: a >= b; max(2)``: pieces of changed bodies that are right, too, see `nanochat.problems.mutants`.
* ``family: larger``: of which meaning the function is, if that has another name.
* ``level: 2``: how hard it is, if the file does not say it.
* ``types``, ``arguments``, ``names``: of templates, see `nanochat.problems.templates`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nanochat.errors import FormatError, did_you_mean
from nanochat.rust.lexer import Token, tokens
from nanochat.rust.signature import read_signature

__all__ = ["Function", "read_functions", "read_lists"]

_DIRECTIVES = ("arguments", "edges", "equivalent", "family", "inputs", "level", "names", "types")
_LIST = "// list "


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of a file: its prompt, which ends with the body's opening brace, the rest, and its directives.

    `place` is where it stands, for messages; `imports` are lines for the prompt, each with its end.
    """

    name: str
    place: str
    imports: str
    prompt: str
    body: str
    directives: Mapping[str, str]

    def level(self, default: int) -> int:
        """The level that a directive says, or another one if there is no such directive.

        Raises
        ------
        FormatError
            If it is none.
        """
        level = self.directives.get("level", str(default))
        if level not in ("-1", "0", "1", "2", "3", "4"):
            raise FormatError(f"{self.place}: {level!r} is no level: use 0 to 4")
        return int(level)


def read_functions(text: str, name: str) -> Iterator[Function]:
    """Yield the functions of a file, which are all that it has but for imports and comments.

    Parameters
    ----------
    text : str
        The file.
    name : str
        Its name, for messages.

    Raises
    ------
    FormatError
        If a directive is unknown, or a function is not closed.
    """
    imports: dict[str, str] = {}
    found = [*tokens(text)]
    place = 0
    comments: list[Token] = []
    while place < len(found):
        token = found[place]
        if token.kind == "comment":
            comments.append(token)
            place += 1
            continue
        end = _end_of_item(found, place)
        where = f"{name}:{text.count(chr(10), 0, token.start) + 1}"
        if token.text in ("fn", "use") and found[end - 1].text not in ("}", ";"):
            raise FormatError(f"{where}: what begins with {token.text} is not closed: add its end")
        if token.text == "use":
            imports.update(_names(text, found[place:end]))
        elif token.text == "fn":
            yield _function(text, found[place:end], comments, imports, where)
        comments = []
        place = end


def read_lists(text: str) -> dict[str, str]:
    """The lists of a file by their names: lines such as ``// list signed: i8 i32``.

    >>> read_lists("// list small: i8 u8")
    {'small': 'i8 u8'}
    """
    lines = [line.removeprefix(_LIST) for line in text.splitlines() if line.startswith(_LIST)]
    return {name: items.strip() for name, _, items in (line.partition(":") for line in lines)}


def _end_of_item(found: list[Token], place: int) -> int:
    """Where the next item begins: behind a semicolon or a closing brace that is in no bracket."""
    depth = 0
    is_import = found[place].text == "use"
    for index in range(place, len(found)):
        text = found[index].text
        if text in ("(", "[", "{"):
            depth += 1
        elif text in (")", "]", "}"):
            depth -= 1
        if depth == 0 and (text == ";" or (text == "}" and not is_import)):
            return index + 1
    return len(found)


def _names(text: str, item: list[Token]) -> Iterator[tuple[str, str]]:
    """What an import such as ``use a::{B, C};`` brings, each with an import of its own."""
    path = text[item[1].start : item[-1].start]
    base, brace, group = path.partition("{")
    for name in group.rstrip("}").split(",") if brace else [path]:
        whole = base + name.strip() if brace else path
        yield whole.rpartition("::")[2], f"use {whole};\n"


def _function(
    text: str, item: list[Token], comments: list[Token], imports: Mapping[str, str], where: str
) -> Function:
    if item[-1].text != "}":
        raise FormatError(f"{where}: the function has no body: add one")
    described = [comment.text for comment in comments if comment.text.startswith("///")]
    brace = next(token for token in item if token.text == "{")
    end = item[-1].start + 1
    signature = text[item[0].start : brace.start + 1]
    used = {token.text for token in item}
    return Function(
        name=read_signature(signature).name,
        place=where,
        imports="".join(line for name, line in imports.items() if name in used),
        prompt="".join(f"{line}\n" for line in described) + signature,
        body=text[brace.start + 1 : end],
        directives=_directives(
            [c.text for c in comments if not c.text.startswith(("///", "//!"))], where
        ),
    )


def _directives(lines: list[str], where: str) -> dict[str, str]:
    directives: dict[str, str] = {}
    for line in lines:
        word, _, text = line.removeprefix("//").strip().partition(":")
        if word.startswith("list "):
            continue
        if word not in _DIRECTIVES:
            raise FormatError(
                f"{where}: {word!r} is no directive: use one of {', '.join(_DIRECTIVES)}"
                f"{did_you_mean(word, _DIRECTIVES)}"
            )
        before = f"{directives[word]}; " if word in directives else ""
        directives[word] = before + text.strip()
    return directives
