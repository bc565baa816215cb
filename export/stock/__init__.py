"""This package holds folders of the Hugging Face Hub's layout: mlx-lm's, transformers', other people's BitNet.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
