"""This file holds how much a server remembers: pages of keys and values, within a number of bytes that is kept to."""

from dataclasses import dataclass

from nanochat.errors import InputError
from nanochat.lm import Model
from nanochat.memory import free_bytes
from nanochat.rows import PAGE, num_pages

__all__ = ["Room", "find_room"]

# Of what is free once the weights are there, where nobody says how much.
_SHARE = 0.5
# Tokens of a prompt and its answer for which there must be room.
_SHORT = 256


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the texts of a model may take.

    `capacity` is the most tokens of one, `pages` those of all, None where a row has memory of its own. `copies` is how
    many states are kept for prompts to come, of models that remember more than keys and values. `bytes` is all of it.
    """

    capacity: int
    pages: int | None
    copies: int
    bytes: int


def find_room(model: Model, *, rows: int, kv_memory: int) -> Room:
    """What so many texts may take.

    Parameters
    ----------
    kv_memory : int
        Most bytes; 0 is what all texts take at their longest, or half of what is free if that is less.

    Raises
    ------
    InputError
        If one short text does not fit.
    """
    context = model.config.context_length
    probe = model.engine.new_state(rows=1, capacity=min(PAGE, context), pages=1)
    page, copies = probe.page_bytes, 0 if probe.can_go_back else 2 * rows
    if not page:
        probe = model.engine.new_state(rows=1, capacity=context)
    row = probe.row_bytes
    # A state has one row and one page more, that nobody reads.
    fixed = (rows + 1 + copies) * row
    whole = fixed + (rows * num_pages(context) + rows + 1) * page
    if not kv_memory:
        free = free_bytes()
        kv_memory = whole if free is None else min(whole, int(free * _SHARE))
    if not page:
        if kv_memory < fixed:
            raise _too_little(model, fixed, kv_memory)
        return Room(capacity=context, pages=None, copies=copies, bytes=fixed)
    pages = (min(kv_memory, whole) - fixed) // page - 1
    least = num_pages(min(_SHORT, context))
    if pages < least:
        raise _too_little(model, fixed + (least + 1) * page, kv_memory)
    return Room(
        capacity=min(context, pages * PAGE),
        pages=pages,
        copies=copies,
        bytes=fixed + (pages + 1) * page,
    )


def _too_little(model: Model, needed: int, given: int) -> InputError:
    return InputError(
        f"{model.name}: {needed / 1e6:,.0f} MB are the least for keys and values of so many texts, and there are "
        f"{given / 1e6:,.0f} MB: pass a larger --kv-memory, a smaller --max-rows, or a narrower --kv-cache"
    )
