"""This package holds ternary matrices as other programs' files hold them: in blocks that pack codes their own way.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
