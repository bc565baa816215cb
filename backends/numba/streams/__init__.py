"""This package holds residual streams (mHC): how they are opened, read, mixed, written and closed."""

__all__: list[str] = []
