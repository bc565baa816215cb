"""Verdicts on what models write: completions are compiled and run in a sandbox, and their results compared outside."""

__all__: list[str] = []
