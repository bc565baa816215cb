"""This package holds the Numba backend: operations on NumPy arrays, which launch compiled kernels.

A kernel does a range of independent tasks, ``first <= task < last``, and every number that it writes depends on its
task alone. So a result is the same for any number of threads, which `runtime.threads` gives their ranges. Kernels trust
their caller: `ops` checks shapes, and nothing in a kernel checks a bound.
"""

__all__: list[str] = []
