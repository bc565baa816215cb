"""This package holds texts as tokens: tokenizers, their library, chat templates.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
