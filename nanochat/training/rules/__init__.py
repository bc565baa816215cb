"""This package holds the update rules of optimizers, over arrays of torch and of MLX."""

__all__: list[str] = []
