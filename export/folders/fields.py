"""This file holds the fields of a ``config.json``, or of an object in it, each checked when it is taken."""

import math
from collections.abc import Mapping, Sequence

from nanochat.errors import ConfigError

__all__ = ["Fields"]


class Fields:
    """Values by name; null is as if the name were not there. `where` stands before names in messages."""

    def __init__(self, values: Mapping[str, object], *, where: str = "") -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._where = where

    def __contains__(self, name: str) -> bool:
        return name in self._values

    @property
    def names(self) -> Sequence[str]:
        """Of all that is there."""
        return list(self._values)

    def get(self, name: str) -> object:
        """The value as it is; None if there is none."""
        return self._values.get(name)

    def wrong(self, name: str, rule: str) -> ConfigError:
        """The error that a value, or that there is none, breaks a rule."""
        if name not in self._values:
            return ConfigError(
                f"{self._where}{name} is missing, must be {rule}: fetch the file again"
            )
        return ConfigError(f"{self._where}{name} is {self._values[name]!r:.200}: must be {rule}")

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number, 1 or more; without a default it must be there."""
        value = self._values.get(name, default)
        if type(value) is not int or value < 1:
            raise self.wrong(name, "a whole number, 1 or more")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number, infinite if no float holds it; without a default it must be there."""
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(name, "a number")
        # The configuration bounds it; an integer may be too large for a float.
        return float(value) if abs(value) < 1e30 else math.inf

    def flag(self, name: str, default: bool) -> bool:
        """Whether something is so."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """So many numbers."""
        values = self._values.get(name)
        if not isinstance(values, list) or len(values) != count:
            raise self.wrong(name, f"a list of {count} numbers")
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
            raise self.wrong(name, f"a list of {count} numbers")
        return tuple(float(value) if abs(value) < 1e30 else math.inf for value in values)

    def inside(self, name: str) -> "Fields":
        """The fields of an object; none if there is no such object."""
        value = self._values.get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "an object or null")
        return Fields(value, where=f"{self._where}{name}.")
