"""This package holds the publication of models on the Hugging Face Hub: checked, measured, with a card, in one commit.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
