"""This file holds the reading of a model card: the YAML before its text, and what that says of the model's use."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped]  # PyYAML, a part of the Hub's client, has no types

from nanochat.errors import FormatError

__all__ = ["Usage", "read_metadata", "read_usage", "split_card"]

_LIBRARY = "nanochat-ternary"
# The Hub's, of models that answer.
_CHATS = "conversational"
# As the Hub finds it: between two lines of three dashes, the first before anything else; it may be missing.
_FRONT_MATTER = re.compile(
    r"(?:([\s\ufeff]*---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z)))?", re.DOTALL | re.MULTILINE
)
_FIX = "correct it at the Hub or in the file, or remove the lines between and with the two ---"


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a card says of a model's use.

    Parameters
    ----------
    summary : str
        The first paragraph of its text.
    example : str
        A prompt that shows what the model can do: the text of the Hub's ``widget``.
    chats : bool, optional
        Whether it was trained to; None of other libraries' cards, many of which do not tell.
    """

    summary: str = ""
    example: str = ""
    chats: bool | None = None


def read_usage(card: bytes) -> Usage:
    """What a card says of the use; nothing where it cannot be read, for it is another's text."""
    text = card.decode("utf-8", "replace")
    try:
        values = read_metadata(text, where="the card")
    except FormatError:
        values = {}
    paragraphs = re.split(r"\n[ \t]*\n", split_card(text)[3].replace("\r\n", "\n"))
    words = [" ".join(paragraph.split()) for paragraph in paragraphs]
    first = next((text for text in words if text and text[0] not in "#<!`|-*[>"), "")
    tags = values.get("tags")
    chats = True if isinstance(tags, list) and _CHATS in tags else None
    if chats is None and values.get("library_name") == _LIBRARY:
        chats = False
    match values.get("widget"):
        case [{"text": str(example)}, *_]:
            return Usage(summary=first, example=example, chats=chats)
        case _:
            return Usage(summary=first, chats=chats)


def split_card(card: str) -> tuple[str, str, str, str]:
    r"""The line that opens the metadata, they themselves, the line that closes them, and the text that follows.

    Examples
    --------
    >>> split_card("---\nlicense: mit\n---\n# Title"), split_card("# Title")
    (('---\n', 'license: mit\n', '---\n', '# Title'), ('', '', '', '# Title'))
    """
    found = _FRONT_MATTER.match(card)
    assert found is not None
    opening, lines, closing = found.groups(default="")
    return opening, lines, closing, card[found.end() :]


def read_metadata(card: str, *, where: str) -> dict[str, Any]:
    """The metadata of a card, which is `where` for errors; empty if it has none."""
    _, lines, _, _ = split_card(card)
    try:
        values = yaml.load(lines, _Loader)
    # A date of the 31st of February is found by the calendar only, depth by the stack, and what a tag says falsely of
    # a value by whatever reads that.
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        RecursionError,
        LookupError,
        AttributeError,
    ) as error:
        raise FormatError(
            f"{where}: its front matter is no YAML ({' '.join(str(error).split())[:200]}); {_FIX}"
        ) from error
    if not isinstance(values, dict | None):
        raise FormatError(f"{where}: its front matter is no list of `key: value` lines; {_FIX}")
    return values or {}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Reads YAML as the Hub does, to which `no` is a language and ``1:30`` is no number, and refuses what hides."""

    def compose_node(self, parent: object, index: object) -> object:
        # A few lines of them can stand for more than any memory holds.
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to anchors: write each value out, without anchors")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> object:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.most_common(1):
            if count > 1:
                raise yaml.YAMLError(f"it has the key {key!r:.80} twice")
        return super().construct_mapping(node, deep=deep)


_NUMBERS = {
    "tag:yaml.org,2002:bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, _NUMBERS.get(tag, rule)) for tag, rule in rules]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
