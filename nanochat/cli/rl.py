"""This file holds `nanochat rl`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nanochat.cli.options import backend_option, sandbox_option
from nanochat.cli.output import note, print_json
from nanochat.cli.recipe import changes_option, device_option, settings_option
from nanochat.cli.run import INTERRUPTED, require_packages

if TYPE_CHECKING:
    from nanochat.sandbox.layers import Kind
    from nanochat.training.run_log import LogEntry
    from nanochat.training.settings import Settings

__all__ = ["reinforce"]

_EXAMPLES = """
\b
Examples:
  nanochat rl --recipe recipes/rl-tiny.json
  nanochat rl --model nanochat-tiny --problems templates --out runs/rl --set steps=100 --set reward.kind=staged
  nanochat rl --model runs/tiny --problems problems.rs --out runs/rl --set steps=100 --set policy.advantage=grpo
  nanochat rl --resume --out runs/rl
"""


def _settings() -> "Settings":
    from nanochat.rl.recipe import SETTINGS

    return SETTINGS


@click.command("rl", epilog=_EXAMPLES)
@click.option(
    "--recipe",
    "config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A recipe in TOML or JSON, which may name the directory of the run.",
)
@click.option(
    "--model",
    help="What it begins with: a model's directory or name, or a run.  [default: as the recipe says]",
)
@click.option(
    "--problems",
    metavar="SET",
    help="Whose split train it learns from: own, templates, or a file.  [default: as the recipe says, or templates]",
)
@changes_option
@settings_option(_settings)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory of the run.  [default: that which the recipe names]",
)
@click.option("--resume", is_flag=True, help="Go on from the snapshot in --out, with its recipe.")
@sandbox_option
@backend_option
@device_option
@click.option(
    "--compile/--no-compile",
    "compile_model",
    default=False,
    show_default=True,
    help="Learn through torch.compile: a C++ compiler and minutes to start, for a long run of a large model.",
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's]")
@click.option("--json", "as_json", is_flag=True, help="Print the last evaluation as JSON.")
def reinforce(
    *,
    config: Path | None,
    model: str | None,
    problems: str | None,
    changes: list[tuple[str, object]],
    out: Path | None,
    resume: bool,
    sandbox: "Kind",
    backend: str,
    device: str,
    compile_model: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train a model on problems whose answers are compiled, run and judged.

    It writes samples, learns from what they earn, and is evaluated on problems that it never sees. The run's directory
    receives log.jsonl, snapshots/ and, in the end, model/. Ctrl-C or SIGTERM ends the run after the current step with
    a snapshot and exit code 130; --resume goes on from it, exactly.
    """
    require_packages("train", "torch", "pydantic", "safetensors")
    from nanochat.rl.evaluation import HELD_OUT_PASSES
    from nanochat.rl.plan import plan
    from nanochat.training.progress import bars

    planned = plan(config, model=model, problems=problems, changes=changes, out=out, resume=resume)
    run = planned.run(
        sandbox=sandbox,
        backend=backend,
        device=device,
        num_threads=threads,
        compile_model=compile_model,
    )
    last: dict[str, object] = {}
    with bars(
        planned.recipe.steps, run.step, "starting", _describe, _told, "samples of problems"
    ) as (show, watch):

        def tell(entry: "LogEntry") -> None:
            if HELD_OUT_PASSES in entry.values:
                last.update(step=entry.step, **entry.values)
            show(entry)

        finished = run.run(tell, watch)
    if finished:
        note(f"wrote {planned.out / 'model'}")
    else:
        note(f"stopped after step {run.step}, which is saved; go on with --resume")
    if as_json:
        print_json(last)
    if not finished:
        raise click.exceptions.Exit(INTERRUPTED)


def _describe(entry: "LogEntry") -> str:
    match entry.values:
        case {"reward": float(reward), "signal": float(signal)}:
            passes = entry.values.get("rollout_passes", 0.0)
            return f"reward {reward:.3f}  passes {passes:.1%}  with signal {signal:.0%}"
        case _:
            return ""


def _told(entry: "LogEntry") -> Iterator[str]:
    """What an entry says that is no progress."""
    match entry.values:
        case {"passes": dict(passes), "runs": dict(runs), "greedy_passes": dict(greedy)}:
            for split, share in passes.items():
                yield (
                    f"{split}: {share:.1%} pass, {runs.get(split, 0.0):.1%} run, {greedy.get(split, 0.0):.1%} of the "
                    "likeliest texts pass"
                )
        case {"anomaly": str(name), "because": str(reason)}:
            yield f"{name}: {reason}"
    if "fire" in entry.values:
        yield str(entry.values["fire"])
    if "sample" in entry.values:
        yield f"it writes:\n{entry.values['sample']}"
