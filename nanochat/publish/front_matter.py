"""This file holds the front matter of a model card: when keys of it change, the text of all others stays as it is.

The YAML is never written anew. Its parser says where each key and value stand, and only those places are replaced.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import yaml  # type: ignore[import-untyped]  # PyYAML, a part of the Hub's client, has no types

from nanochat.errors import FormatError

__all__ = ["Value", "body_start", "newline", "read_front_matter", "update_front_matter"]

# As the Hub finds it: two lines of three dashes, the first before anything else.
_FRONT = re.compile(
    r"([\s\ufeff]*---[ \t]*\r?\n)(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_FIX = "correct it at the Hub or in the file, or remove the lines between and with the two ---"


@dataclass(frozen=True)
class Value:
    """A value of the front matter, in its place.

    Parameters
    ----------
    key, node : yaml.Node
        As parsed; `node` is the value.
    """

    key: yaml.Node
    node: yaml.Node

    @property
    def plain(self) -> object:
        """The value as YAML understands it."""
        value: object = yaml.SafeLoader("").construct_document(self.node)
        return value

    @property
    def texts(self) -> list[str]:
        """The texts of a list or of a single text, as written: YAML takes the language `no` for a negation."""
        nodes = self.node.value if isinstance(self.node, yaml.SequenceNode) else [self.node]
        return [
            n.value
            for n in nodes
            if isinstance(n, yaml.ScalarNode) and n.value not in ("", "null", "~")
        ]


def read_front_matter(card: str, *, where: str) -> dict[str, Value]:
    """The values of a card's front matter by key; empty if it has none.

    Parameters
    ----------
    where : str
        What the card is, for the error.

    Raises
    ------
    FormatError
        If it is no YAML mapping with a line for each key.
    """
    found = _FRONT.match(card)
    if found is None:
        return {}
    try:
        root = yaml.compose(found[2], yaml.SafeLoader)
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode) or root.flow_style:
            raise FormatError(f"{where}: its front matter is no list of `key: value` lines; {_FIX}")
        values: dict[str, Value] = {}
        for key, node in root.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in values:
                raise FormatError(
                    f"{where}: its front matter has the key {key.value!r:.80} twice, or no plain key; {_FIX}"
                )
            values[key.value] = Value(key, node)
            _ = values[key.value].plain
    # A date of the 31st of February is found by the calendar only, and depth by the stack.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"{where}: its front matter is no YAML ({' '.join(str(error).split())[:200]}); {_FIX}"
        ) from error
    return values


def update_front_matter(card: str, changes: Mapping[str, object], *, where: str) -> str:
    """The card with these values in its front matter, which is made if there is none.

    Raises
    ------
    FormatError
        As for `read_front_matter`, or if another value refers to one that changes.
    """
    values = read_front_matter(card, where=where)
    changes = {
        key: value
        for key, value in changes.items()
        if key not in values or values[key].plain != value
    }
    if not changes:
        return card
    end_of_line = newline(card)
    found = _FRONT.match(card)
    if found is None:
        lines = "".join(
            _dump(key, value, end_of_line, 0) + end_of_line for key, value in changes.items()
        )
        gap = end_of_line if card and not card.startswith(("\n", "\r")) else ""
        return f"---{end_of_line}{lines}---{end_of_line}{gap}{card}"
    text = found[2]
    column = min((value.key.start_mark.column for value in values.values()), default=0)
    for key in sorted(
        changes.keys() & values.keys(), key=lambda key: -values[key].key.start_mark.index
    ):
        start, end = values[key].key.start_mark.index, _end(values[key].node)
        text = text[:start] + _dump(key, changes[key], end_of_line, column) + text[end:]
    for key in changes:
        if key not in values:
            text += " " * column + _dump(key, changes[key], end_of_line, column) + end_of_line
    updated = card[: found.start(2)] + text + card[found.end(2) :]
    _require_others_same(values, read_front_matter(updated, where=where), changes, where)
    return updated


def body_start(card: str) -> int:
    """Where the text begins that follows the front matter."""
    found = _FRONT.match(card)
    return 0 if found is None else found.end()


def newline(text: str) -> str:
    """What ends the first line of a text."""
    first, separator, _ = text.partition("\n")
    return "\r\n" if separator and first.endswith("\r") else "\n"


def _dump(key: str, value: object, end_of_line: str, column: int) -> str:
    text: str = yaml.safe_dump(
        {key: value}, sort_keys=False, allow_unicode=True, default_flow_style=False, width=10**6
    )
    return (end_of_line + " " * column).join(text.rstrip("\n").split("\n"))


def _end(node: yaml.Node) -> int:
    """Where a value ends, without the comments and empty lines after it."""
    children = []
    if isinstance(node, yaml.SequenceNode) and not node.flow_style:
        children = node.value
    elif isinstance(node, yaml.MappingNode) and not node.flow_style:
        children = [value for _, value in node.value]
    end: int = max(map(_end, children)) if children else node.end_mark.index
    return end


def _require_others_same(
    old: Mapping[str, Value], new: Mapping[str, Value], changes: Mapping[str, object], where: str
) -> None:
    """Refuse a change that reached further than it should: anchors, for one, are seen from other keys."""
    same = old.keys() - changes.keys() <= new.keys() and all(
        repr(new[key].plain) == repr(old[key].plain) for key in old.keys() - changes.keys()
    )
    if not same or any(new[key].plain != value for key, value in changes.items()):
        raise FormatError(
            f"{where}: {', '.join(changes)} cannot be changed in its front matter without another key; write each "
            "value out, without anchors"
        )
