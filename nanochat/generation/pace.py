"""This file holds the pace of a session: how much of prompts a step may read beside texts that are being written."""

__all__ = ["Pace"]

# Products take so many rows at a time, and however slow prompts are, they are read at least at this rate. With twice as
# many, streams wait for four of their steps while the end of a prompt of 4,000 tokens is read.
_ROWS = 4
# A step of so many seconds is no hitch to anybody, however short the others are.
_SMOOTH = 0.02
# Before anything was measured.
_FIRST = 128
# Share of the last step in what is expected of the next one.
_NEW = 0.25


class Pace:
    """Tokens of prompts for each step, from the times of the steps before.

    Texts do not depend on how their prompts were cut, so that times may decide.

    Parameters
    ----------
    most : int
        Tokens of prompts in a step at most.
    stretch : float, optional
        How many times as long as one in which all texts were being written a step may take, or a fiftieth of a second
        if that is longer; absent, as long as it likes. Texts whose prompts are still read count as if they were being
        written: else a few would be written fast, and the others wait.

    Examples
    --------
    >>> pace = Pace(512, stretch=2.5)
    >>> pace.note(0.010, num_writing=4, num_read=0)
    >>> pace.note(0.110, num_writing=4, num_read=1000)
    >>> pace.tokens(num_writing=4, num_reading=0), pace.tokens(num_writing=0, num_reading=1)
    (148, 512)
    """

    def __init__(self, most: int, *, stretch: float | None = None) -> None:
        self._most = most
        self._stretch = stretch
        # Seconds of a step without prompts, by its texts; and of a token of a prompt.
        self._steps: dict[int, float] = {}
        self._token: float | None = None

    def tokens(self, *, num_writing: int, num_reading: int) -> int:
        """Tokens that so many prompts may read in the next step, beside so many texts that are being written."""
        if self._stretch is None or not num_writing:
            return self._most
        step, whole = self._seconds(num_writing), self._seconds(num_writing + num_reading)
        if step is None or whole is None or not self._token:
            return min(_FIRST, self._most)
        room = int(max(max(self._stretch * whole, _SMOOTH) - step, 0.0) / self._token)
        return max(_ROWS, min(room // _ROWS * _ROWS, self._most))

    def note(self, seconds: float, *, num_writing: int, num_read: int) -> None:
        """Count a step, by its texts that are being written and its tokens of prompts."""
        if not num_read:
            self._steps[num_writing] = _mixed(self._steps.get(num_writing), seconds)
            return
        step = self._seconds(num_writing)
        if step is not None:
            self._token = _mixed(self._token, max(seconds - step, 0.0) / num_read)

    def _seconds(self, texts: int) -> float | None:
        """What a step of so many texts takes, as far as one can tell from others."""
        if not texts:
            return 0.0
        if not self._steps:
            return None
        known = min(self._steps, key=lambda count: abs(count - texts))
        return self._steps[known] * max(texts / known, 1.0)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else (1 - _NEW) * old + _NEW * new
