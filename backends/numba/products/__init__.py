"""This package holds linears: the layout of weights, the rounding of activations, and their products."""

__all__: list[str] = []
