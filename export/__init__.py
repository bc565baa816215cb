"""This package holds the exporters: each writes a file that another runtime loads, and verifies it.

Import the exporter that you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
