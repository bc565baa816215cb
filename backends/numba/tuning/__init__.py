"""This package holds the choice among the ways to compute a product, measured once on each machine."""

__all__: list[str] = []
