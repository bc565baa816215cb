"""This file holds `nanochat check`: the whole way of a small model, in a quarter of a minute."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from nanochat.cli.output import write
from nanochat.cli.run import require_packages

if TYPE_CHECKING:
    from nanochat.training.run_log import LogEntry

__all__ = ["check"]

# A model of two layers on a part of Python's own library, so that nothing need be there.
_CONFIG = {
    "preset": "tiny",
    "steps": 20,
    "text": {"files": ["{python}/json/*.py", "{python}/email/*.py"], "vocab_size": 1024},
    "model": {"vocab_size": 1024, "num_layers": 2},
    "data": {"batch_size": 4, "length": 128},
    "schedule": {"warmup_steps": 2, "decay_steps": 10},
    "precision": {"products": "float32"},
    "run": {"evaluation_windows": 8, "sample_tokens": 0},
}
_PROMPT = "def main():"


@click.command()
def check() -> None:
    """Train a small model for 20 steps, write, export, load and run it, and say whether all of that works here.

    It takes a quarter of a minute, half on the first start, needs no network, and leaves nothing.
    """
    require_packages("train", "torch", "pydantic", "safetensors")
    from nanochat.export.export import export_model
    from nanochat.export.formats import load
    from nanochat.lm import from_pretrained
    from nanochat.training.plan import train

    losses: list[float] = []

    def show(entry: "LogEntry") -> None:
        if "loss" in entry.values:
            losses.append(float(str(entry.values["loss"])))

    with tempfile.TemporaryDirectory() as folder:
        run, file = Path(folder) / "run", Path(folder) / "model.gguf"
        with _step("train 20 steps"):
            # So small a model gains nothing by more threads.
            train(_CONFIG, out=run, compile_model=False, num_threads=1, show=show)
            if not np.mean(losses[-5:]) < losses[0]:
                raise click.ClickException(
                    f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}, and should have fallen: report this"
                )
        with _step("export to GGUF"):
            export_model(load(run / "model"), file, kind="gguf", verify=False)
        with _step("load both"):
            ours = from_pretrained(run / "model")
            theirs = from_pretrained(file)
        with _step("compare logits"):
            ids = ours.encode_prompt(_PROMPT)
            if not np.array_equal(ours.logits(ids), theirs.logits(ids)):
                raise click.ClickException("the exported model computes other logits: report this")
        with _step("generate"):
            text = ours.generate(_PROMPT, max_tokens=16)
        write(f"loss {losses[0]:.2f} to {losses[-1]:.2f}; it writes {_PROMPT + text!r}\n")


@contextmanager
def _step(name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    write(f"{name:16} {time.perf_counter() - begin:5.1f} s\n")
