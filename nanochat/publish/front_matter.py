"""This file holds the front matter of a model card: when keys of it change, the text of all others stays as it is.

The YAML is never written anew. Its parser says where each key and value stand, and only those places are replaced; a
list gets and loses single items, so that its comments and its order stay.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml  # type: ignore[import-untyped]  # PyYAML, a part of the Hub's client, has no types

from nanochat.errors import FormatError

__all__ = ["Items", "Value", "body_start", "newline", "read_front_matter", "update_front_matter"]

# As the Hub finds it: two lines of three dashes, the first before anything else.
_FRONT = re.compile(
    r"([\s\ufeff]*---[ \t]*\r?\n)(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_FIX = "correct it at the Hub or in the file, or remove the lines between and with the two ---"
_WRITE_OUT = "write each value out, without anchors"


@dataclass(frozen=True, kw_only=True)
class Items:
    """A change of a list: what must be in it, and what must not."""

    added: Sequence[str] = ()
    removed: Sequence[str] = ()


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
    def is_scalar(self) -> bool:
        """Whether it is one text, number or nothing."""
        return isinstance(self.node, yaml.ScalarNode)

    @property
    def texts(self) -> list[str]:
        """The texts of a list or of a single text, as written: YAML takes the language `no` for a negation."""
        nodes = self.node.value if isinstance(self.node, yaml.SequenceNode) else [self.node]
        return [node.value for node in nodes if _is_text(node)]


def read_front_matter(card: str, *, where: str) -> dict[str, Value]:
    """The values of a card's front matter by key; empty if it has none.

    Parameters
    ----------
    where : str
        What the card is, for the error.

    Raises
    ------
    FormatError
        If it is no YAML mapping with a line for each key, or has values that stand elsewhere.
    """
    found = _FRONT.match(card)
    if found is None:
        return {}
    try:
        # A few lines of them can stand for more than any memory holds.
        if "*" in found[2] and any(
            isinstance(event, yaml.AliasEvent) for event in yaml.parse(found[2], yaml.SafeLoader)
        ):
            raise FormatError(f"{where}: its front matter refers to anchors; {_WRITE_OUT}")
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

    Parameters
    ----------
    changes : mapping
        What must stand under a key; `Items` changes a list, and `None` takes the key out.

    Raises
    ------
    FormatError
        As for `read_front_matter`; if a list that changes has something else than texts; or if the change of a value
        would reach another.
    """
    values = read_front_matter(card, where=where)
    changes = {
        key: wanted for key, wanted in changes.items() if not _is_so(values.get(key), wanted)
    }
    if not changes:
        return card
    end_of_line = newline(card)
    found = _FRONT.match(card)
    if found is None:
        lines = "".join(
            _dump(key, wanted, end_of_line, 0) + end_of_line for key, wanted in changes.items()
        )
        gap = end_of_line if card and not card.startswith(("\n", "\r")) else ""
        return f"---{end_of_line}{lines}---{end_of_line}{gap}{card}"
    text = found[2]
    column = min((value.key.start_mark.column for value in values.values()), default=0)
    for key in sorted(
        changes.keys() & values.keys(), key=lambda key: -values[key].key.start_mark.index
    ):
        value, wanted = values[key], changes[key]
        if isinstance(wanted, Items):
            _require_texts(key, value.node, where)
        edits = _edits(text, key, value, wanted, end_of_line=end_of_line, column=column)
        for start, end, new in sorted(edits, reverse=True):
            text = text[:start] + new + text[end:]
    for key in changes:
        if key not in values:
            text += " " * column + _dump(key, changes[key], end_of_line, column) + end_of_line
    updated = card[: found.start(2)] + text + card[found.end(2) :]
    try:
        there = read_front_matter(updated, where=where)
    except FormatError as error:
        raise _reaches_others(changes, where) from error
    if not _is_all_else_same(values, there, changes):
        raise _reaches_others(changes, where)
    return updated


def body_start(card: str) -> int:
    """Where the text begins that follows the front matter."""
    found = _FRONT.match(card)
    return 0 if found is None else found.end()


def newline(text: str) -> str:
    """What ends the first line of a text."""
    first, separator, _ = text.partition("\n")
    return "\r\n" if separator and first.endswith("\r") else "\n"


def _is_text(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value not in ("", "null", "~")


def _is_so(value: Value | None, wanted: object) -> bool:
    if isinstance(wanted, Items):
        there = set() if value is None else set(value.texts)
        return set(wanted.added) <= there and there.isdisjoint(wanted.removed)
    return value is None if wanted is None else value is not None and value.plain == wanted


def _require_texts(key: str, node: yaml.Node, where: str) -> None:
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(item, yaml.ScalarNode) for item in nodes):
        raise FormatError(
            f"{where}: {key} of its front matter has something else than single words; write it as a list of them, or "
            "remove the rest"
        )


def _edits(
    text: str, key: str, value: Value, wanted: object, *, end_of_line: str, column: int
) -> list[tuple[int, int, str]]:
    """What to replace in the text: from, to, and by what."""
    start, end = value.key.start_mark.index, _end(value.node)
    if wanted is None:
        return [(start - value.key.start_mark.column, _next_line(text, end), "")]
    if not isinstance(wanted, Items):
        return [(start, end, _dump(key, wanted, end_of_line, column))]
    there = value.texts
    result = _after(there, wanted)
    nodes = value.node.value if isinstance(value.node, yaml.SequenceNode) else []
    if not nodes or not result:
        return [(start, end, _dump(key, result, end_of_line, column))]
    added = [word for word in result if word not in there]
    gone = [_is_text(node) and node.value in wanted.removed for node in nodes]
    if value.node.flow_style:
        return _edits_of_flow(nodes, gone, added)
    line = text.rfind("\n", 0, nodes[0].start_mark.index) + 1
    indent = text.index("-", line) - line
    place = _next_line(text, nodes[-1].end_mark.index)
    lines = "".join(" " * indent + _item(word, flow=False) + end_of_line for word in added)
    removals = [
        (text.rfind("\n", 0, node.start_mark.index) + 1, _next_line(text, node.end_mark.index), "")
        for node, is_gone in zip(nodes, gone, strict=True)
        if is_gone
    ]
    return [*removals, (place, place, lines)]


def _edits_of_flow(
    nodes: Sequence[yaml.Node], gone: Sequence[bool], added: Sequence[str]
) -> list[tuple[int, int, str]]:
    """The same for a list in brackets, of which something remains."""
    words = ", ".join(_item(word, flow=True) for word in added)
    spans = [(node.start_mark.index, node.end_mark.index) for node in nodes]
    last = max((number for number, is_gone in enumerate(gone) if not is_gone), default=-1)
    edits = [(spans[number][0], spans[number + 1][0], "") for number in range(last) if gone[number]]
    if last < 0:
        return [(spans[0][0], spans[-1][1], words)]
    return [*edits, (spans[last][1], spans[-1][1], f", {words}" if words else "")]


def _after(there: Sequence[str], items: Items) -> list[str]:
    """The texts of a list after its change, in order."""
    kept = [word for word in there if word not in items.removed]
    return [*kept, *(word for word in dict.fromkeys(items.added) if word not in kept)]


def _next_line(text: str, index: int) -> int:
    """Where the line after a value begins."""
    if index and text[index - 1] == "\n":
        return index
    found = text.find("\n", index)
    return len(text) if found < 0 else found + 1


def _item(word: str, *, flow: bool) -> str:
    text: str = yaml.safe_dump(
        [word], allow_unicode=True, default_flow_style=flow, width=10**6
    ).rstrip("\n")
    return text[1:-1] if flow else text


def _dump(key: str, value: object, end_of_line: str, column: int) -> str:
    if isinstance(value, Items):
        value = _after([], value)
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


def _is_all_else_same(
    old: Mapping[str, Value], new: Mapping[str, Value], changes: Mapping[str, object]
) -> bool:
    """Whether a change came about and reached no further."""
    if any(not _is_so(new.get(key), wanted) for key, wanted in changes.items()):
        return False
    for key, value in old.items():
        wanted = changes.get(key)
        if isinstance(wanted, Items) and new[key].texts != _after(value.texts, wanted):
            return False
        if key not in changes and (key not in new or repr(new[key].plain) != repr(value.plain)):
            return False
    return True


def _reaches_others(changes: Mapping[str, object], where: str) -> FormatError:
    return FormatError(
        f"{where}: {', '.join(changes)} cannot be changed in its front matter without another key; {_WRITE_OUT}"
    )
