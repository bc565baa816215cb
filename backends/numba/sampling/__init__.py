"""This package holds the choice of tokens: random numbers, selection without sorting, and the draw of a row."""

__all__: list[str] = []
