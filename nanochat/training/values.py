"""This file holds the kinds of values that settings may have, which pydantic checks."""

from typing import Annotated

from pydantic import ConfigDict, Field

__all__ = ["CHECKED", "Count", "NotNegative", "Part", "Positive", "Share", "Whole"]

# What is not a field is an error; a flag is no number.
CHECKED = ConfigDict(extra="forbid")

Count = Annotated[int, Field(ge=1, strict=True)]
Whole = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, strict=True, allow_inf_nan=False)]
Part = Annotated[float, Field(gt=0, le=1, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
