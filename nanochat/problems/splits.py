"""This file holds what is held out: whole families, and of templates also types and names.

* ``held-out``: every problem of a family that a hash chooses, whichever set it is in. No family is in two splits, but
  for those of templates below; no function's name is in two families.
* ``other-types``: of a family that is trained on, instances with a type *and* argument names of the second groups.
* ``other-names``: of a family that is trained on, instances with function names of the second group.
* ``train``: the rest. What mixes the groups otherwise, such as a known type with other argument names, is left out.

So a prompt is in one split only, and a function's name of ``other-names`` or ``held-out`` in no prompt of ``train``.
"""

from nanochat.data.splits import is_held_out

__all__ = ["is_family_held_out"]

_SHARE = 0.25


def is_family_held_out(family: str) -> bool:
    """Whether the problems of a family are for evaluation only, a quarter of all families are.

    >>> [is_family_held_out(family) for family in ("larger", "square", "peaks")]
    [False, False, False]
    """
    return is_held_out(f"problem {family}", _SHARE)
