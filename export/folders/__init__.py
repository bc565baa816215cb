"""This package holds the readers of other people's folders: a ``config.json`` with tensors in safetensors.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
