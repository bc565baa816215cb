"""This file holds ``python -m nanochat``, which is `nanochat` without an entry point on the path."""

from nanochat.cli import main

__all__: list[str] = []

# A process that another one starts imports this, too.
if __name__ == "__main__":
    main()
