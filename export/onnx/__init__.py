"""This package holds ONNX graphs: the model's own forward writes them, ONNX Runtime runs them.

Import what you need from its module; importing this package loads none of them.
"""

__all__: list[str] = []
