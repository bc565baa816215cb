"""This file holds the case `evaluation`: what `nanochat eval` finds of the models that ship."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.result import Result, table
from nanochat.evaluation.completing import Drawing
from nanochat.evaluation.evaluate import Programs, evaluate_programs
from nanochat.evaluation.results import estimates
from nanochat.lm import Model
from nanochat.zoo.catalog import CATALOG

__all__ = ["run", "table"]


def run(quick: bool) -> Iterator[Result]:
    """Each rate of each model, with its interval in the name."""
    drawing = Drawing(num_samples=10)
    asked = Programs(drawing=drawing, ks=(1, 10), limit=12 if quick else 0)
    for name in [entry.name for entry in CATALOG.values() if entry.ships]:
        with tempfile.TemporaryDirectory() as folder, Model.from_pretrained(name) as model:
            found = evaluate_programs(model, asked, Path(folder), lambda *_: None)
        for rate, estimate, _meaning in estimates(found):
            yield Result(
                case="evaluation",
                what=f"{name}: {rate} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f} %)",
                unit="%",
                ours=100 * estimate.value,
            )
