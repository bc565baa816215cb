"""This package holds the torch backend: eager or compiled, on CPU and CUDA, for inference and for training."""

__all__: list[str] = []
