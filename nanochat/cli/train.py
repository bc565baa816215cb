"""This file holds `nanochat train`."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanochat.cli.options import find_shape
from nanochat.cli.output import note, print_json, write
from nanochat.cli.run import INTERRUPTED, require_packages
from nanochat.errors import TrainingError
from nanochat.export.stock.architectures import stock_runtimes

if TYPE_CHECKING:
    from nanochat.config import ModelConfig
    from nanochat.training.configuration import Configuration
    from nanochat.training.loop import LogEntry
    from nanochat.training.recipe import Recipe

__all__ = ["train"]

_EXAMPLES = """
\b
Examples:
  nanochat train configs/tiny.toml
  nanochat data prepare 'src/**/*.rs' --out data/rust --vocab-size 4096
  nanochat train --preset tiny --data data/rust --out runs/tiny --set steps=1000
  nanochat train --resume --data data/rust --out runs/tiny
  nanochat train --start runs/tiny --data data/rust --out runs/longer --set steps=2000
"""


def _list_settings(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if not asked or context.resilient_parsing:
        return
    from nanochat.training.settings import setting_groups, titles

    listing = context.make_formatter()
    listing.write_text("Settings for --set NAME=VALUE, with their defaults.")
    for prefix, title in titles():
        groups = [(each.names, f"{each.meaning}  [{each.kind}]") for each in setting_groups(prefix)]
        with listing.section(title.rstrip(".")):
            listing.write_dl(groups)
    write(listing.getvalue().lstrip("\n"))
    context.exit()


@click.command(epilog=_EXAMPLES)
@click.argument(
    "config", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=False
)
@click.option(
    "--preset",
    help="Start from this preset's shape, such as tiny, or that of a model of the catalog.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting of the recipe, or model.NAME of the model; repeatable.  [see --settings]",
)
@click.option(
    "--settings",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_settings,
    help="List all settings with their defaults, and exit.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Tokens, from `nanochat data prepare`.  [default: those of CONFIG's text, in the run's directory]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory of the run.  [default: that which CONFIG names]",
)
@click.option("--resume", is_flag=True, help="Go on from the snapshot in --out, with its recipe.")
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Branch off the snapshot in another run's directory, at its step, and with its recipe if none is given.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train; auto is CUDA if it is there.",
)
@click.option(
    "--compile/--no-compile",
    "compile_model",
    default=True,
    show_default=True,
    help="Run through torch.compile: a C++ compiler and a minute to start, then several times faster.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's]")
@click.option("--json", "as_json", is_flag=True, help="Print the last evaluation as JSON.")
def train(
    *,
    config: Path | None,
    preset: str | None,
    changes: tuple[str, ...],
    data: Path | None,
    out: Path | None,
    resume: bool,
    start: Path | None,
    device: str,
    compile_model: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train a model, and write it as a model directory.

    CONFIG is a recipe in TOML or JSON, and may name the text to train on and the directory of the run.

    The run's directory receives log.jsonl, snapshots/ and, in the end, model/. Ctrl-C or SIGTERM ends the run after the
    current step with a snapshot and exit code 130; --resume goes on from it, exactly.
    """
    require_packages("train", "torch", "pydantic", "safetensors")
    from nanochat.training.configuration import Configuration, read_configuration
    from nanochat.training.loop import Trainer
    from nanochat.training.snapshot import holds_run, load_recipe

    whole = Configuration(fields={}) if config is None else read_configuration(config)
    out = out or whole.out
    if out is None:
        raise click.UsageError("pass the directory of the run: --out, or a CONFIG with out")
    if resume:
        if preset or start or changes:
            raise click.UsageError(
                "--resume takes the recipe of the snapshot: leave out --preset, --start, --set"
            )
        recipe = load_recipe(out)
        start = out
    else:
        if holds_run(out):
            raise TrainingError(
                f"{out} already holds a run: pass --resume to go on, or another --out"
            )
        recipe = _recipe(preset, whole, start, changes)
    trainer = Trainer(
        recipe,
        data or _data(whole, out),
        out,
        start=start,
        device=device,
        num_threads=threads,
        compile_model=compile_model,
    )
    if not resume:
        _say_who_cannot_run(recipe.model)
    if resume and trainer.step == recipe.steps:
        note(
            f"{out} has reached its last step, {recipe.steps}: what is missing of its end is done; to train on, begin "
            f"another run with --start {out} and more --set steps"
        )
    last: dict[str, object] = {}
    with _progress(recipe, trainer.step, compiling=compile_model) as (show, watch):

        def keep(entry: "LogEntry") -> None:
            if "held_out_bits_per_byte" in entry.values:
                last.update(step=entry.step, **entry.values)
            show(entry)

        finished = trainer.run(keep, watch)
    if not finished:
        note(f"stopped after step {trainer.step}, which is saved; go on with --resume")
    elif (out / "model").exists():
        note(f"wrote {out / 'model'}")
    if as_json:
        print_json(last)
    if not finished:
        raise click.exceptions.Exit(INTERRUPTED)


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


def _data(config: "Configuration", out: Path) -> Path:
    """The tokens of a configuration's text, or those that the run had before."""
    from nanochat.training.configuration import prepared

    if config.text is not None:
        return prepared(config.text, out)
    if (out / "data").is_dir():
        return out / "data"
    raise click.UsageError("pass what to train on: --data, or a CONFIG with [text]")


def _recipe(
    preset_name: str | None,
    config: "Configuration",
    start: Path | None,
    changes: tuple[str, ...],
) -> "Recipe":
    from nanochat.config import config_to_dict
    from nanochat.training.recipe import recipe_from_dict, recipe_to_dict
    from nanochat.training.settings import change_setting
    from nanochat.training.snapshot import load_recipe

    fields: dict[str, object] = {}
    preset_name = preset_name or config.preset
    if preset_name is not None:
        shape = config_to_dict(find_shape(preset_name))
        model = config.fields.get("model", {})
        changed = {**shape, **model} if isinstance(model, dict) else model
        fields = {**config.fields, "model": changed}
    elif config.fields:
        fields = {**config.fields}
    elif start is not None:
        fields = recipe_to_dict(load_recipe(start))
    else:
        raise click.UsageError("pass what to train: a CONFIG, --preset, or --start with a run")
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise click.UsageError(f"--set {change}: write NAME=VALUE")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        change_setting(fields, name, value)
    if "steps" not in fields:
        # What was written is looked at before what was not.
        recipe_from_dict({**fields, "steps": 2**31})
    return recipe_from_dict(fields)


@contextmanager
def _progress(
    recipe: "Recipe", step: int, *, compiling: bool
) -> "Iterator[tuple[Callable[[LogEntry], None], Callable[[int, int], None]]]":
    """Two progress bars on standard error, for what the log says and for the sequences of an evaluation."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    bar = Progress(
        TextColumn("{task.fields[unit]}"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    begin = "compiling" if compiling else "starting"
    steps = bar.add_task(begin, total=recipe.steps, completed=step, unit="step")
    evaluation = bar.add_task("", total=None, visible=False, unit="evaluating")
    speed = held_out = ""

    def show(entry: "LogEntry") -> None:
        nonlocal speed, held_out
        bits = entry.values.get("held_out_bits_per_byte")
        if isinstance(bits, float):
            held_out = f"  held out {bits:.4f} bits/byte"
            bar.console.print(f"step {entry.step}: held out {bits:.4f} bits per byte")
        for line in _told(entry):
            bar.console.print(f"step {entry.step}: {line}")
        if "cross_entropy" in entry.values:
            loss, rate = entry.values["cross_entropy"], entry.values["tokens_per_second"]
            speed = f"{loss:.3f} nats/token  {rate:.0f} tokens/s"
        if speed or held_out:
            bar.update(steps, completed=entry.step, description=f"{speed}{held_out}")

    def watch(done: int, total: int) -> None:
        if not done and not bar.console.is_terminal:
            # A bar that does not move is shown once, at the end of the run.
            bar.console.print(f"evaluating held-out sequences: {total}")
        bar.update(evaluation, completed=done, total=total, visible=done < total, refresh=not done)

    with bar:
        yield show, watch


def _told(entry: "LogEntry") -> "Iterator[str]":
    """What an entry says that is no progress."""
    match entry.values:
        case {
            "machine": {"gflops": {"float32": float(full), "bfloat16": float(half)}},
            "recipe": {"precision": {"products": str(products)}},
        }:
            yield f"products in {products} ({full:.0f} GFLOP/s in float32, {half:.0f} in bfloat16)"
        case {"skipped_batch": int(number), "because": str(reason)}:
            yield f"batch {number} is left out, because {reason}"
        case {"went_back": str(reason)}:
            yield f"back to this step, because {reason}"
