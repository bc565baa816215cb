"""This file holds what the compiler says, a line of JSON for each error, and to which file an error belongs."""

import json
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

__all__ = ["Finding", "findings"]

# Codes of errors that are found as the text is read; most of those have none.
_LEXICAL = re.compile(r"E0(586|748|758|762|763|765|766|768)")
# What else has no code: it is found after reading.
_LATER = re.compile(
    "cannot find|no rules expected|expected value, found|invalid format string|environment variable|recursion limit"
)


class Finding(NamedTuple):
    """An error: the file it is in ("" if it is in none), what kind it is, and its message on one line."""

    file: str
    kind: Literal["parse", "type"]
    message: str


def findings(said: bytes) -> Iterator[Finding]:
    """The errors among what rustc said by ``--error-format=json``; what is cut off or no JSON is passed over."""
    for line in said.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if not isinstance(found, dict) or found.get("level") != "error":
            continue
        spans = [span for span in found["spans"] if span["is_primary"]]
        message = str(found["message"])
        if not spans and message.startswith("aborting due to"):
            continue
        code = (found["code"] or {}).get("code", "")
        expanded = any(span["expansion"] for span in spans)
        read = not code and not expanded and not _LATER.search(message)
        kind: Literal["parse", "type"] = "parse" if read or _LEXICAL.match(code) else "type"
        file = next(filter(None, (_file(span) for span in spans)), "")
        yield Finding(file, kind, message.partition("\n")[0])


def _file(span: dict[str, object] | None) -> str:
    """The innermost file of ours that a place in the source was expanded from."""
    while isinstance(span, dict):
        name = str(span["file_name"])
        if "/" not in name and name.endswith(".rs") and name != "main.rs":
            return name
        expansion = span["expansion"]
        span = expansion["span"] if isinstance(expansion, dict) else None
    return ""
