"""This package holds the reference backend: every operation in plain NumPy, and therefore its specification in code."""

__all__: list[str] = []
