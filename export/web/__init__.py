"""This package holds the page that runs a model in a browser.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
