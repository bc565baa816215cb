"""This file holds ``python -m nanochat.cli``, for a checkout that is not installed."""

from nanochat.cli import main

__all__: list[str] = []

main()
