"""How good a model is: of texts, the bits for a byte; of programs, how many compile, run and are right."""

__all__: list[str] = []
