"""What a model may learn without a change of its weights: lessons and examples that stand before a prompt."""

__all__: list[str] = []
