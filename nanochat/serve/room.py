"""This file holds how much a server remembers: pages of keys and values, within a number of bytes that is kept to."""

from dataclasses import dataclass

from nanochat.errors import InputError
from nanochat.generation.prefixes import COPIES
from nanochat.lm import Model
from nanochat.memory import free_bytes
from nanochat.rows import PAGE, num_pages, pages_of_rows

__all__ = ["Room", "find_room"]

# Of what is free once the weights are there, where nobody says how much.
_SHARE = 0.5
# Tokens of a prompt and its answer for which there must be room.
_SHORT = 256
# Texts at a time, where nobody says how many; of those that remember much besides keys and values, fewer.
_ROWS = (32, 16, 8, 4, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the texts of a model may take.

    `rows` is how many are written at the same time, `capacity` the most tokens of one, `pages` those of all, None where
    a row has memory of its own. `copies` is how many states are kept for prompts to come, of models that remember more
    than keys and values. `bytes` is all of it.
    """

    rows: int
    capacity: int
    pages: int | None
    copies: int
    bytes: int


def find_room(model: Model, *, rows: int, kv_memory: int, heads: bool = False) -> Room:
    """What texts may take.

    Parameters
    ----------
    rows : int
        How many are written at the same time; 0 is 32, or as many as leave half of the memory to their pages.
    kv_memory : int
        Most bytes; 0 is what all texts take at their longest, or half of what is free if that is less.
    heads : bool
        Whether extra heads of the model keep keys and values, too.

    Raises
    ------
    InputError
        If one short text does not fit.
    """
    context = model.config.context_length
    probe = model.engine.new_state(rows=1, capacity=min(PAGE, context), pages=1, ahead=heads)
    page: int = probe.page_bytes
    can_go_back: bool = probe.can_go_back
    if not page:
        probe = model.engine.new_state(rows=1, capacity=context)
    row: int = probe.row_bytes

    def fixed(rows: int) -> int:
        # A state has one row more, that nobody reads.
        return (rows + 1 + _copies(rows, can_go_back)) * row

    def whole(rows: int) -> int:
        return fixed(rows) + (pages_of_rows(rows, context) + 1) * page

    if not kv_memory:
        free = free_bytes()
        most = whole(rows or _ROWS[0])
        kv_memory = most if free is None else min(most, int(free * _SHARE))
    if not rows:
        rows = next((rows for rows in _ROWS if 2 * fixed(rows) <= kv_memory), 1)
    copies = _copies(rows, can_go_back)
    if not page:
        if kv_memory < fixed(rows):
            raise _too_little(model, fixed(rows), kv_memory)
        return Room(rows=rows, capacity=context, pages=None, copies=copies, bytes=fixed(rows))
    pages = (min(kv_memory, whole(rows)) - fixed(rows)) // page - 1
    least = num_pages(min(_SHORT, context))
    if pages < least:
        raise _too_little(model, fixed(rows) + (least + 1) * page, kv_memory)
    return Room(
        rows=rows,
        capacity=min(context, pages * PAGE),
        pages=pages,
        copies=copies,
        bytes=fixed(rows) + (pages + 1) * page,
    )


def _copies(rows: int, can_go_back: bool) -> int:
    return 0 if can_go_back else COPIES * rows


def _too_little(model: Model, needed: int, given: int) -> InputError:
    return InputError(
        f"{model.name}: {needed / 1e6:,.0f} MB are the least for keys and values of so many texts, and there are "
        f"{given / 1e6:,.0f} MB: pass a larger --kv-memory, a smaller --max-rows, or a narrower --kv-cache"
    )
