"""This package holds training: data, recipes, optimizers and the loop."""

__all__: list[str] = []
