"""This file holds thoughts: how a chat template marks them, and how they are told from the answer as it grows.

A model that thinks writes its thoughts between two marks before it answers. Its template may write the first mark
itself, so that an answer begins inside a thought, or both, so that there is none.

References
----------
.. [1] A. Yang et al., "Qwen3 Technical Report", 2025, section 4.3, "Thinking Budget". arXiv:2505.09388
.. [2] github.com/QwenLM/Qwen3, docs/source/getting_started/thinking_budget.md.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from nanochat.errors import InputError
from nanochat.text.held import overlap

__all__ = [
    "KNOWN_MARKS",
    "Marks",
    "ThoughtSplitter",
    "Thoughts",
    "check_budget",
    "marks_of",
    "require_marks",
]

# What models that were trained to think in the first marks are told when their time is up [1]_ [2]_; others are
# asked in the same words.
_TIME_IS_UP = (
    "Considering the limited time by the user, I have to give the solution based on the thinking "
    "directly now."
)
# Tokens that a thought without a budget may take of a text whose length nobody chose; and that its end takes.
_USUAL_TOKENS, _ENDING_TOKENS = 4096, 64


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What stands before and after a thought; `gap` is the white space that models write inside and behind them."""

    opening: str
    closing: str
    gap: str = ""


KNOWN_MARKS = (
    # Qwen, DeepSeek, GLM, Nemotron, EXAONE, LFM and most others.
    Marks(opening="<think>", closing="</think>", gap="\n\n"),
    # Mistral.
    Marks(opening="[THINK]", closing="[/THINK]"),
    # Cohere.
    Marks(opening="<|START_THINKING|>", closing="<|END_THINKING|>"),
    # Gemma.
    Marks(opening="<|channel>thought\n", closing="<channel|>"),
    # ByteDance.
    Marks(opening="<seed:think>", closing="</seed:think>"),
)


@dataclass(frozen=True, kw_only=True)
class Thoughts:
    """How the thoughts in a text are told from the rest, and how many tokens they may take.

    Parameters
    ----------
    marks : Marks
        Around each.
    begun : str, optional
        What the prompt holds of a thought that it begins, as a rule a line's end; absent if it begins none.
    ended : bool
        Whether the prompt ends with a thought that is over, so that none is to be expected.
    budget : int, optional
        Most tokens of thoughts; absent is as many as the model likes.
    """

    marks: Marks
    begun: str | None = None
    ended: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        check_budget(self.budget)

    @property
    def usual_tokens(self) -> int:
        """How much longer a text is for them, if nobody says how long it may be."""
        if self.ended:
            return 0
        return _USUAL_TOKENS if self.budget is None else self.budget + _ENDING_TOKENS

    def ending(self, *, empty: bool) -> str:
        """What ends a thought that has used up its budget, or, if it is still empty, makes it look like none."""
        gap, begun = self.marks.gap, self.begun or ""
        if not empty:
            return f"{gap}{_TIME_IS_UP}{gap[:1]}{self.marks.closing}{gap}"
        return f"{gap.removeprefix(begun)}{self.marks.closing}{gap}"


def marks_of(template: str) -> Marks | None:
    """The marks of thoughts of which a template has one at least, or None."""
    # A line's end in a mark is spelled otherwise in a template.
    return next(
        (m for m in KNOWN_MARKS if m.closing in template or m.opening.strip() in template), None
    )


def require_marks(template: str, what: str) -> Marks:
    """The same, or an error that names what was asked for."""
    marks = marks_of(template)
    if marks is None:
        known = ", ".join(marks.closing for marks in KNOWN_MARKS)
        raise InputError(
            f"{what}, but this model's chat template knows no thinking (none of {known}): leave it out, or pass a "
            "template that does as chat_template (--template FILE)"
        )
    return marks


def check_budget(budget: object) -> None:
    """Refuse what is no number of tokens."""
    if budget is None:
        return
    whole = isinstance(budget, int | np.integer) and not isinstance(budget, bool)
    if not whole or budget < 0:  # type: ignore[operator]  # it is a number
        raise InputError(
            f"thinking_budget={budget!r:.80} is no number of tokens: pass 0, for none, or more"
        )


class _Place(Enum):
    BEFORE = "before what may be a thought"
    INSIDE = "inside one"
    BEHIND = "in the answer"


class ThoughtSplitter:
    r"""Tells thoughts from the answer in a growing text.

    A thought is the first of a text, or follows another. White space around it is no part of it, nor of the answer.
    What may be the start of a mark is held back until more is known.

    Examples
    --------
    >>> splitter = ThoughtSplitter(Thoughts(marks=KNOWN_MARKS[0]))
    >>> [splitter.push(part) for part in ("<thi", "nk>\nHm", ".\n</think>", "\n\nYes")]
    [('', ''), ('Hm', ''), ('.', ''), ('', 'Yes')]
    """

    def __init__(self, thoughts: Thoughts) -> None:
        self._marks = thoughts.marks
        self._place = _Place.BEFORE if thoughts.begun is None else _Place.INSIDE
        self._held = ""
        # Whether nothing of the thought has been handed out; whether there was one; what parts it from the one before.
        self._is_fresh, self._any, self._between = True, thoughts.begun is not None, ""

    @property
    def is_inside(self) -> bool:
        """Whether the text ends inside a thought."""
        return self._place is _Place.INSIDE

    @property
    def is_answering(self) -> bool:
        """Whether the answer has begun, in which no mark means anything."""
        return self._place is _Place.BEHIND

    def may_end_with(self, text: str) -> bool:
        """Whether the closing mark would be there, or may have begun, if this came next."""
        closing, held = self._marks.closing, self._held + text
        return closing in held or overlap(held, closing) > 0

    def push(self, text: str) -> tuple[str, str]:
        """What of the thoughts, and what of the answer, may be shown by now."""
        self._held += text
        thought = ""
        while self._place is not _Place.BEHIND:
            if self._place is _Place.INSIDE:
                before, mark, after = self._held.partition(self._marks.closing)
                thought += self._thought(before, is_whole=bool(mark))
                if not mark:
                    return thought, ""
                self._held, self._place, self._any = after, _Place.BEFORE, True
            start = self._held.lstrip()
            if start.startswith(self._marks.opening):
                self._held, self._place = start.removeprefix(self._marks.opening), _Place.INSIDE
                self._is_fresh = True
            elif self._marks.opening.startswith(start):
                return thought, ""
            else:
                self._place = _Place.BEHIND
                self._held = start if self._any else self._held
        said, self._held = self._held, ""
        return thought, said

    def flush(self) -> tuple[str, str]:
        """What was held back; call it when the text ends."""
        held, self._held = self._held, ""
        if self._place is _Place.INSIDE:
            return held.rstrip(), ""
        return "", held.lstrip() if self._any else held

    def _thought(self, text: str, *, is_whole: bool) -> str:
        """What of a thought may be shown, without the white space around it; the rest is held."""
        if self._is_fresh:
            text = text.lstrip()
        shown = text if is_whole else text[: len(text) - overlap(text, self._marks.closing)]
        shown = shown.rstrip()
        self._held = "" if is_whole else text[len(shown) :]
        if not self._is_fresh or not shown:
            return shown
        self._is_fresh, between, self._between = False, self._between, "\n\n"
        return between + shown
