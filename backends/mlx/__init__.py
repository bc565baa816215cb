"""This package holds the MLX backend, for the GPU of Apple silicon; it also runs on the CPU of any machine."""

__all__: list[str] = []
