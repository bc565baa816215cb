"""This package holds the compiled kernels of the Numba backend; each file has one idea.

A kernel does a range of independent tasks, ``first <= task < last``, and every number that it writes depends on its
task alone. So a result is the same for any number of threads, which `team` gives their ranges. Kernels trust their
caller: `nanochat.backends.numba` checks shapes, and nothing here checks a bound.
"""

__all__: list[str] = []
