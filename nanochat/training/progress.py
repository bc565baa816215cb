"""This file holds what a run shows of itself on a terminal."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nanochat.text.controls import without_controls
from nanochat.training.phases import stage_at, stages
from nanochat.training.recipe import ENDLESS, Recipe
from nanochat.training.run_log import HELD_OUT, LogEntry

__all__ = ["bars", "progress"]


@contextmanager
def progress(
    recipe: Recipe, step: int, *, compiling: bool
) -> Iterator[tuple[Callable[[LogEntry], None], Callable[[int, int], None]]]:
    """Two progress bars on standard error, for what the log says and for the sequences of an evaluation."""
    phases = stages(recipe)
    speed = held_out = ""

    def describe(entry: LogEntry) -> str:
        nonlocal speed, held_out
        bits = entry.values.get(HELD_OUT)
        if isinstance(bits, float):
            held_out = f"  held out {bits:.4f} bits/byte"
        if "loss" in entry.values:
            loss, rate = entry.values["loss"], entry.values["tokens_per_second"]
            speed = f"{loss:.3f} nats/token  {rate:.0f} tokens/s"
            if len(phases) > 1:
                number = phases.index(stage_at(phases, entry.step - 1)) + 1
                speed += f"  phase {number}/{len(phases)}"
        return speed + held_out

    total = None if recipe.steps == ENDLESS else recipe.steps
    begin = "compiling" if compiling else "starting"
    with bars(total, step, begin, describe, _told, "held-out sequences") as found:
        yield found


@contextmanager
def bars(
    total: int | None,
    step: int,
    begin: str,
    describe: Callable[[LogEntry], str],
    told: Callable[[LogEntry], Iterable[str]],
    evaluated: str,
) -> Iterator[tuple[Callable[[LogEntry], None], Callable[[int, int], None]]]:
    """Two progress bars on standard error: of a run, to be called with entries, and of an evaluation.

    Parameters
    ----------
    begin : str
        What is said before the first step.
    describe : callable
        What is said beside the bar after an entry; "" says nothing new.
    told : callable
        Lines that an entry is worth, above the bars.
    evaluated : str
        What an evaluation counts.
    """
    bar = Progress(
        TextColumn("{task.fields[unit]}"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    steps = bar.add_task(begin, total=total, completed=step, unit="step")
    evaluation = bar.add_task("", total=None, visible=False, unit="evaluating")

    def show(entry: LogEntry) -> None:
        for line in told(entry):
            # What a model wrote is neither for the terminal to obey nor markup.
            text = f"step {entry.step}: {without_controls(line)}"
            bar.console.print(text, markup=False, highlight=False)
        if "decided_steps" in entry.values:
            bar.update(steps, total=int(str(entry.values["decided_steps"])))
        if text := describe(entry):
            bar.update(steps, completed=entry.step, description=text)

    def watch(done: int, total: int) -> None:
        if not done and not bar.console.is_terminal:
            # A bar that does not move is shown once, at the end of the run.
            bar.console.print(f"evaluating {evaluated}: {total}")
        bar.update(evaluation, completed=done, total=total, visible=done < total, refresh=not done)

    with bar:
        yield show, watch


def _told(entry: LogEntry) -> Iterator[str]:
    """What an entry says that is no progress."""
    match entry.values:
        case {
            "machine": {"gflops": {"float32": float(full), "bfloat16": float(half)}},
            "recipe": {"precision": {"products": str(products)}},
        }:
            yield f"products in {products} ({full:.0f} GFLOP/s in float32, {half:.0f} in bfloat16)"
        case {"skipped_batch": int(number), "because": str(reason)}:
            yield f"batch {number} is left out, because {reason}"
        case {"anomaly": str(name), "because": str(reason)}:
            yield f"{name}: {reason}"
        case {"went_back": str(reason)}:
            yield f"back to this step, because {reason}"
        case {"decided_steps": int(number), "decay_steps": int(decay)}:
            yield f"the run ends at step {number}, in {decay} steps of a falling rate, when its time is over"
        case {"held_out_accuracy": float(share)}:
            bits = entry.values[HELD_OUT]
            yield f"held out {bits:.4f} bits per byte, {share:.1%} of tokens the most probable"
    if "fire" in entry.values:
        yield str(entry.values["fire"])
    if "sample" in entry.values:
        yield f"it writes:\n{entry.values['sample']}"
