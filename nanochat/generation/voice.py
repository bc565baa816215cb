"""This file holds what one text says, but for its thoughts: text up to a stop string, and calls of tools behind it."""

from nanochat.generation.sampling import StopStrings
from nanochat.text.call_shape import SPECIAL
from nanochat.text.calls import CallPart, Calls, CallSplitter
from nanochat.text.codec import TextCodec

__all__ = ["Voice"]


class Voice:
    """What a text says; white space between its text and calls is part of neither."""

    def __init__(self, stops: StopStrings, calls: Calls | None, tokenizer: TextCodec) -> None:
        self._stops = stops
        self._splitter = None if calls is None else CallSplitter(calls)
        # Special tokens stand for no text, but may stand in calls.
        self._names = {
            token: SPECIAL + name
            for name, token in tokenizer.specials.items()
            if calls is not None and name in calls.shape.texts
        }
        # The end of the text, if it is white.
        self._blank = ""

    @property
    def has_called(self) -> bool:
        """Whether there are calls, and all are whole."""
        return self._splitter is not None and self._splitter.is_whole

    def name_of(self, token: int) -> str:
        """How a special token that may stand in calls is spelled in what is said."""
        return self._names.get(token, "")

    def push(self, text: str) -> tuple[str, tuple[CallPart, ...]]:
        """What may be shown, and what of calls, after some more text."""
        if self._splitter is None:
            return self._stops.push(text)[0], ()
        said, parts = self._splitter.push(text)
        shown, is_over = self._stops.push(said)
        has_begun = self._splitter.has_begun and not is_over
        if has_begun:
            shown += self._stops.flush()
        whole = self._blank + shown
        shown = whole.rstrip()
        self._blank = "" if has_begun else whole[len(shown) :]
        return shown, parts

    def end(self, text: str) -> str:
        """What is shown once the text has ended, of which this is the last."""
        shown = self.push(text)[0]
        held = "" if self._splitter is None else self._stops.push(self._splitter.flush())[0]
        return shown + self._blank + held + self._stops.flush()
