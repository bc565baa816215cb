"""This file holds the names of answers and requests."""

import random

__all__ = ["new_id"]


def new_id() -> str:
    """24 digits that nobody else has; they are no secret, and cost no call of the system."""
    return f"{random.getrandbits(96):024x}"
