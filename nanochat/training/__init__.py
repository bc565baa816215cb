"""This package holds training: recipes, optimizers and the loop."""

__all__: list[str] = []
