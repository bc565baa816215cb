"""This package holds GGUF files: their container, this package's models in them, and other people's; and llama.cpp.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
