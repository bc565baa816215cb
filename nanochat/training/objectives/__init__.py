"""This package holds what training may minimise: the settings of it, and its terms, one idea a file."""

__all__: list[str] = []
