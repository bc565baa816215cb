"""This file holds texts that are hard to read as Rust: random ones, of pieces that mean something to a lexer."""

from hypothesis import strategies as st

__all__ = ["texts"]

_PIECES = [
    *"{}()[]'\"\\/*#rbcfx01eE_é→!.:->+ \n\r\t$&\u200e\ufeff\ud800\0",
    *("br", "cr", "r#", "'a", "b'", "//", "/*", "*/", "..", "::", "->", "0x", "0b", "1.0", "e5"),
    *("'{'", '"{"', 'r#"', '"#', "'r#", "#!", "\\u{7D}", "///", "b'}'", "'\\''", "}", "}", "}"),
]


def texts(most: int = 14) -> st.SearchStrategy[str]:
    """Draw texts of at most so many pieces."""
    return st.lists(st.sampled_from(_PIECES), max_size=most).map("".join)
