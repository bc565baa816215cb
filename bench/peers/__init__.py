"""This package holds the peers of `python -m bench cpu`: what a user would run instead of our Numba backend.

A peer of a product takes its ternary matrix and `threads`, and maps float32 (N, C) to float32 (N, R). The peer of a
whole model is `nanochat.export.gguf.llama_cpp`.
"""

__all__: list[str] = []
