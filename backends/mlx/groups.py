"""This file holds how many columns of a matrix MLX can give a scale of their own, which is known without MLX."""

__all__ = ["GROUPS"]

# The largest that lies inside one block of weights is taken.
GROUPS = (128, 64, 32)
