"""Programs that nobody trusts: run with limits, apart from the machine, to one outcome each: see `Sandbox`."""

__all__: list[str] = []
