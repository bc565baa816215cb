"""Servers that import this first guess whether that pays or not; see `tests.serve.processes.running`."""

from nanochat.generation import costs
from tests.parity.guesses import some_guesses

costs.Chooser.choose = some_guesses(seed=1)  # type: ignore[method-assign]  # which is the point of it
