"""This package holds the reader of other people's GGUF files: ternary models that llama.cpp or a fork of it runs.

Codes and scales are taken as they are. llama.cpp rounds a linear's input in blocks of 256 or 32, as the type of its
matrix asks for; here a model has one block for all of them, the nearest that there is.
"""

__all__: list[str] = []
