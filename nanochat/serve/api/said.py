"""This file holds what a text of an answer says as it comes, and what it has taken."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.generation.options import Piece
from nanochat.serve.engine import Answer

__all__ = ["Call", "Said", "Tally", "usage", "written"]


@dataclass
class Tally:
    """What a text has taken, and how it ended."""

    num_tokens: int = 0
    # Of thoughts.
    num_thought: int = 0
    cached: int = 0
    finish_reason: str | None = None
    stopped_by: str | int | None = None
    # Tokens that were guessed from a prediction, and those of them that stood.
    predicted: tuple[int, int] = (0, 0)

    def count(self, piece: Piece) -> None:
        """Add a piece of it."""
        self.num_tokens += piece.token >= 0
        self.num_thought += bool(piece.reasoning)
        self.cached, self.predicted = piece.cached, piece.predicted
        self.finish_reason, self.stopped_by = piece.finish_reason, piece.stopped_by


def usage(*, prompt: int, tallies: Sequence[Tally], cached: int) -> dict[str, Any]:
    """Tokens that were read and written."""
    completion = sum(tally.num_tokens for tally in tallies)
    accepted = sum(tally.predicted[1] for tally in tallies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "reasoning_tokens": sum(tally.num_thought for tally in tallies),
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": sum(tally.predicted[0] for tally in tallies) - accepted,
        },
    }


@dataclass
class Call:
    """A call of a tool, of which the arguments are JSON, as far as they have come."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Said:
    """A text, as far as it has come, what was thought before it, and the calls behind it.

    Parameters
    ----------
    new_id : callable
        The number of a call.
    """

    new_id: Callable[[], str]
    tally: Tally = field(default_factory=Tally)
    text: str = ""
    thought: str = ""
    calls: list[Call] = field(default_factory=list)

    def take(self, pieces: Sequence[Piece]) -> None:
        """Add pieces of it."""
        for piece in pieces:
            self.tally.count(piece)
            self.text += piece.text
            self.thought += piece.reasoning
            for part in piece.calls:
                if part.name is not None:
                    self.calls.append(Call(self.new_id(), part.name))
                self.calls[part.number].arguments += part.arguments


async def written(answer: Answer, new_id: Callable[[], str]) -> Said:
    """The one text of an answer, once it has ended."""
    said = Said(new_id)
    async for pieces in answer.pieces():
        said.take(pieces)
    return said
