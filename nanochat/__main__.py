"""This file holds ``python -m nanochat``, which is `nanochat` without an entry point on the path."""

from nanochat.cli import main

__all__: list[str] = []

main()
