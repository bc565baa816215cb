"""This package holds generation: a model at work, the choice of tokens, the texts written at the same time.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
