"""Prepared data: from text on disk to the batches of a training run. Nothing here needs torch."""

__all__: list[str] = []
