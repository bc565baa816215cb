"""This package holds what proves that a copy of a model is that model: records, digests, parity.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
