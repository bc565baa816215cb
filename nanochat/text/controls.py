"""This file holds what a terminal may be shown of a text that somebody else wrote, or a model."""

__all__ = ["without_controls"]

# What a terminal obeys instead of showing it: C0 and C1 controls, but for tabs and new lines.
_CONTROLS = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(0x20), *range(0x7F, 0xA0))
    if chr(code) not in "\t\n"
}


def without_controls(text: str) -> str:
    """A text that a terminal shows, and does not obey: models, templates and cards are other people's."""
    return text.translate(_CONTROLS)
