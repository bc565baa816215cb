"""This package holds the models by name: the catalog, the small model that ships, and the Hub.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
