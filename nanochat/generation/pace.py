"""This file holds the pace of a session: how much of prompts a step may read beside texts that are being written."""

__all__ = ["Pace"]

# However slow prompts are, they are read at least at this rate: products take four rows at a time.
_LEAST = 4
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
        How many times as long as one without prompts a step may take beside texts that are being written, or a fiftieth
        of a second if that is longer; absent, as long as it likes.

    Examples
    --------
    >>> pace = Pace(512, stretch=2.5)
    >>> pace.note(0.010, num_writing=4, num_read=0)
    >>> pace.note(0.110, num_writing=4, num_read=1000)
    >>> pace.tokens(num_writing=4), pace.tokens(num_writing=0)
    (148, 512)
    """

    def __init__(self, most: int, *, stretch: float | None = None) -> None:
        self._most = most
        self._stretch = stretch
        # Seconds of a step without prompts, and of a token of a prompt.
        self._step: float | None = None
        self._token: float | None = None

    def tokens(self, *, num_writing: int) -> int:
        """Tokens of prompts that the next step may read, beside so many texts that are being written."""
        if self._stretch is None or not num_writing:
            return self._most
        if self._step is None or not self._token:
            return min(_FIRST, self._most)
        seconds = max(self._stretch * self._step, _SMOOTH) - self._step
        room = int(max(seconds, 0.0) / self._token)
        return max(_LEAST, min(room // _LEAST * _LEAST, self._most))

    def note(self, seconds: float, *, num_writing: int, num_read: int) -> None:
        """Count a step, by its texts that are being written and its tokens of prompts."""
        if not num_read:
            self._step = _mixed(self._step, seconds)
        elif num_writing and self._step is not None:
            self._token = _mixed(self._token, max(seconds - self._step, 0.0) / num_read)
        elif not num_writing:
            self._token = _mixed(self._token, seconds / num_read)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else (1 - _NEW) * old + _NEW * new
