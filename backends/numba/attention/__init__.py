"""This package holds what mixes positions: attention with keys and values, convolutions, and the gated delta rule."""

__all__: list[str] = []
