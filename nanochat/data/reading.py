"""This file holds how records become documents: what of them is read, and what is left out or held out."""

from dataclasses import dataclass
from typing import Literal

from nanochat.errors import InputError

__all__ = ["Reading", "Unit"]

Unit = Literal["document", "piece"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How records become documents.

    Parameters
    ----------
    held_out, unit, column
        See :func:`nanochat.data.documents.documents`.
    chat : bool
        Whether records are conversations, of which those without an answer are left out.
    near_duplicates : float
        From which resemblance on a text is left out for an earlier one; 0 keeps all.
    max_bytes : int
        Files of text, and records, that are larger are left out.
    """

    held_out: float
    unit: Unit = "document"
    column: str = "text"
    chat: bool = False
    near_duplicates: float = 0.0
    max_bytes: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields of a record that are read, if it has them."""
        return ("messages", "conversations") if self.chat else (self.column,)

    def __post_init__(self) -> None:
        if not 0 <= self.near_duplicates <= 1:
            raise InputError(
                f"near_duplicates={self.near_duplicates} is no resemblance: pass 0 to keep all, or up to 1; 0.8 is "
                "usual"
            )
