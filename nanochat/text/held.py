"""This file holds how much of a growing text is held back, because a mark may have begun at its end."""

__all__ = ["overlap"]


def overlap(text: str, mark: str) -> int:
    """Characters of the longest end of `text` that `mark` starts with, and is not.

    >>> overlap("one <", "</s>"), overlap("one </s", "</s>"), overlap("one", "</s>")
    (1, 3, 0)
    """
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(mark[:n])), 0)
