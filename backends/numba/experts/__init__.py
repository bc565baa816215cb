"""This package holds mixtures of experts: the way of tokens to their networks, and the products of all networks."""

__all__: list[str] = []
