"""This file holds `nanochat train`."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanochat.cli.output import format_bytes, format_count, note, print_json, print_table
from nanochat.cli.recipe import (
    changes_option,
    config_argument,
    data_option,
    device_option,
    preset_option,
    settings_option,
)
from nanochat.cli.run import INTERRUPTED, require_packages
from nanochat.errors import counted
from nanochat.export.stock.architectures import stock_runtimes

if TYPE_CHECKING:
    from nanochat.config import ModelConfig
    from nanochat.training.recipe import Recipe
    from nanochat.training.run_log import LogEntry
    from nanochat.training.settings import Settings

__all__ = ["train"]

_EXAMPLES = """
\b
Examples:
  nanochat train configs/tiny.toml
  nanochat data prepare 'src/**/*.rs' --out data/rust --vocab-size 4096
  nanochat train --preset tiny --data data/rust --out runs/tiny --set steps=1000
  nanochat train --preset tiny --data rust=data/rust --data books=data/books --out runs/mixed --set steps=1000
  nanochat train configs/nano-125m.toml --dry-run
  nanochat train --resume --data data/rust --out runs/tiny
  nanochat train --start runs/tiny --data data/rust --out runs/longer --set steps=2000
  nanochat train configs/sft.toml --weights runs/tiny --data data/chats --out runs/chat
"""


def _settings() -> "Settings":
    from nanochat.training.settings import TRAINING

    return TRAINING


@click.command(epilog=_EXAMPLES)
@config_argument
@preset_option
@changes_option
@settings_option(_settings)
@click.option(
    "--tokens-per-parameter",
    type=float,
    help="Train for as many steps as read so many tokens for each parameter; 20 is usual.",
)
@click.option(
    "--budget",
    metavar="DURATION",
    help="Train for so long, such as 90s, 20m or 8h: the rate falls so that the run ends in time.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print parameters, operations, memory, steps and time, and exit; nothing is read or written.",
)
@data_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory of the run.  [default: that which CONFIG names]",
)
@click.option("--resume", is_flag=True, help="Go on from the snapshot in --out, with its recipe.")
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Branch off the snapshot in another run's directory, at its step, and with its recipe, which a CONFIG without "
    "a model changes.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Begin at step 0 with the weights of another run, a snapshot or a model, on whatever data: to fine-tune. A "
    "CONFIG without a model has theirs.",
)
@device_option
@click.option(
    "--compile/--no-compile",
    "compile_model",
    default=True,
    show_default=True,
    help="Run through torch.compile: a C++ compiler and a minute to start, then several times faster.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's]")
@click.option(
    "--tensorboard",
    is_flag=True,
    help="Write every line of the log for TensorBoard, too, into OUT/tensorboard.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the last evaluation as JSON.")
def train(
    *,
    config: Path | None,
    preset: str | None,
    changes: list[tuple[str, object]],
    tokens_per_parameter: float | None,
    budget: str | None,
    dry_run: bool,
    data: Path | dict[str, Path] | None,
    out: Path | None,
    resume: bool,
    start: Path | None,
    weights: Path | None,
    device: str,
    compile_model: bool,
    threads: int | None,
    tensorboard: bool,
    as_json: bool,
) -> None:
    """Train a model, and write it as a model directory.

    CONFIG is a recipe in TOML or JSON, and may name the text to train on and the directory of the run.

    The run's directory receives log.jsonl, snapshots/ and, in the end, model/, unless it ends with
    precision.weights=float. Ctrl-C or SIGTERM ends the run after the current step with a snapshot and exit code 130;
    --resume goes on from it, exactly.
    """
    require_packages("train", "torch", "pydantic", "safetensors")
    if tensorboard:
        require_packages("tensorboard", "tensorboard")
    from nanochat.training.plan import events, plan, recipe_of, run_watched
    from nanochat.training.progress import progress
    from nanochat.training.run_log import HELD_OUT

    if tokens_per_parameter is not None:
        changes.append(("tokens_per_parameter", tokens_per_parameter))
    if budget is not None:
        changes.append(("budget", budget))
    if dry_run:
        found = recipe_of(config, preset_name=preset, changes=changes, start=start, weights=weights)
        _print_estimate(found, device, threads, as_json=as_json)
        return
    planned = plan(
        config,
        preset_name=preset,
        changes=changes,
        data=data,
        out=out,
        start=start,
        weights=weights,
        resume=resume,
    )
    out, recipe = planned.out, planned.recipe
    trainer = planned.trainer(device=device, num_threads=threads, compile_model=compile_model)
    if not resume:
        _say_who_cannot_run(recipe.model)
    if resume and trainer.step == recipe.steps:
        note(
            f"{out} has reached its last step, {recipe.steps}: what is missing of its end is done; to train on, begin "
            f"another run with --start {out} and more --set steps"
        )
    last: dict[str, object] = {}

    def keep(entry: "LogEntry") -> None:
        if HELD_OUT in entry.values:
            last.update(step=entry.step, **entry.values)

    finished = run_watched(
        trainer,
        events(wanted=tensorboard)(out, trainer.step),
        progress(recipe, trainer.step, compiling=compile_model),
        keep,
    )
    if not finished:
        note(f"stopped after step {trainer.step}, which is saved; go on with --resume")
    elif (out / "model").exists():
        note(f"wrote {out / 'model'}")
    else:
        note("wrote no model: the last weights are not rounded (precision.weights=float)")
    if as_json:
        print_json(last)
    if not finished:
        raise click.exceptions.Exit(INTERRUPTED)


def _print_estimate(recipe: "Recipe", device: str, threads: int | None, *, as_json: bool) -> None:
    """What a run would take here."""
    from nanochat.training.estimate import estimate, seconds
    from nanochat.training.recipe import ENDLESS

    found = estimate(recipe)
    time = seconds(found, recipe, device=device, num_threads=threads)
    if recipe.steps == ENDLESS:
        steps, time = max(1, round(recipe.steps * recipe.run.budget / time)), recipe.run.budget
        found = found.shortened(steps)
    if as_json:
        print_json({**dataclasses.asdict(found), "bytes": found.bytes, "seconds": time})
        return
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer": found.optimizer,
        "a pass": found.activations,
    }
    print_table(
        [
            ("parameters", format_count(found.parameters)),
            *(
                [("  trained", format_count(found.trained))]
                if found.trained < found.parameters
                else []
            ),
            ("steps", f"{found.steps:,}"),
            (
                "tokens",
                f"{format_count(found.tokens)}, {found.tokens_per_parameter:.3g} a parameter",
            ),
            ("operations a token", format_count(found.flops_per_token)),
            ("memory", format_bytes(found.bytes)),
            *((f"  {name}", format_bytes(size)) for name, size in parts.items()),
            ("time", f"about {_in_words(time)}"),
        ]
    )


def _in_words(seconds: float) -> str:
    for unit, length in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return counted(round(seconds / length), unit)
    return counted(round(seconds), "second")


def _say_who_cannot_run(config: "ModelConfig") -> None:
    """Say before the work, and not at an export after it, which stock runtimes have no place for the model."""
    reasons = {name: text for name, text in stock_runtimes(config).items() if text}
    if not reasons:
        return
    advice = "; one with --set model.num_streams=1 they can" if config.num_streams > 1 else ""
    note(
        f"{', '.join(reasons)} cannot run this model ({next(iter(reasons.values()))}){advice}: nanochat-ternary and "
        "ONNX Runtime can"
    )
