"""This package holds how kernels are compiled, kept, and run on threads, and the words that they are written in."""

__all__: list[str] = []
