"""This file holds what the simplest work costs one thread, in nanoseconds: launches estimate their kernels from it.

An estimate decides whether a launch is worth several threads, and how finely it is cut. The numbers are those of a
Zen 4 core.
"""

__all__ = ["BYTE", "ELEMENT", "FLOAT", "INTEGER"]

# A multiply-add of integers, and of float32.
INTEGER, FLOAT = 1 / 150, 1 / 20
# An element that is moved through a few operations.
ELEMENT = 0.5
# A byte from memory.
BYTE = 1 / 25
