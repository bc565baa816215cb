"""This file holds the drafts of a session: what is guessed of its texts, and how much of that a step reads."""

import itertools
from collections.abc import Sequence
from typing import Any

from nanochat.generation.costs import Chooser
from nanochat.generation.drafts import MOST_GUESSED, Guess
from nanochat.generation.engine import Choices, Runner
from nanochat.generation.texts import Text

__all__ = ["Drafter"]


class Drafter:
    """Guesses for the texts of a session.

    Parameters
    ----------
    vocab_size : int
        Tokens that may be chosen.
    can_go_back : bool
        Of the session's state, see `nanochat.rows.RowState`.
    """

    def __init__(self, runner: Runner[Any], *, vocab_size: int, can_go_back: bool) -> None:
        self._runner = runner
        self._vocab_size = vocab_size
        self._can_go_back = can_go_back
        self._chooser = Chooser(runner)

    def guesses(self, spans: Sequence[tuple[Text, list[int]]]) -> list[tuple[Text, Guess]]:
        """The texts and what is guessed of each, as much as pays; empty while prompts are read."""
        is_drafted = False
        for text, ids in spans:
            if (
                not text.has_begun
                or text.read + len(ids) < len(text.ids)
                or len(ids) > MOST_GUESSED + 1
            ):
                return []
            is_drafted |= text.is_drafted
        if not is_drafted:
            return []
        guesses = [text.guess() for text, _ in spans]
        if not any(guess.tokens for guess in guesses):
            return [(text, guess) for (text, _), guess in zip(spans, guesses, strict=True)]
        counts = self._chooser.choose(
            [len(ids) for _, ids in spans],
            [guess.chances for guess in guesses],
            replayed=not self._can_go_back,
        )
        return [
            (text, guess.first(count))
            for (text, _), guess, count in zip(spans, guesses, counts, strict=True)
        ]

    def ask_ahead(self, texts: Sequence[tuple[Text, int]], choices: Choices) -> None:
        """Let extra heads guess for texts, from their rows of the choices."""
        texts = [(text, row) for text, row in texts if text.draft.asks_ahead]
        if not texts:
            return
        assert choices.ahead is not None
        found = self._runner.ahead(
            choices.ahead[[row for _, row in texts]],
            [text.sampler for text, _ in texts],
            vocab_size=self._vocab_size,
        )
        for (text, _), tokens in zip(texts, found.tolist(), strict=True):
            text.ahead = tuple(itertools.takewhile(lambda token: token >= 0, tokens))

    def note(self, tokens: int, seconds: float) -> None:
        """Learn what a step of so many tokens has taken."""
        self._chooser.note(tokens, seconds)
