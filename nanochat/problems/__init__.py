"""This package holds problems: Rust functions to complete, the inputs that judge them, and readers of others' sets.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
