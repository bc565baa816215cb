"""This file holds `nanochat eval` and `nanochat judge`."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from nanochat.cli.judging import (
    SET,
    input_seed_option,
    levels_option,
    max_tokens_option,
    overwrite_option,
    progress_bars,
    seed_option,
    temperature_option,
    top_p_option,
)
from nanochat.cli.options import (
    as_json_option,
    backend_option,
    model_argument,
    sandbox_option,
    threads_option,
    unpinned_option,
)
from nanochat.cli.output import note, print_json, print_table, write
from nanochat.cli.run import require_packages
from nanochat.errors import InputError
from nanochat.experience.examples import Choice
from nanochat.generation.scoring import Convention
from nanochat.problems.problem import Split

__all__ = ["evaluate", "judge"]

_EXAMPLES = """
\b
Examples:
  nanochat eval nanochat-tiny
  nanochat eval runs/mine --text 'books/*.txt'
  nanochat eval nanochat-tiny --problems templates --split held-out --limit 100 --out evals/templates
  nanochat eval runs/mine --problems nuprl/MultiPL-E:humaneval-rs --samples 20 --temperature 0.2 --max-tokens 512
  nanochat eval runs/mine --experience lessons.json --out evals/after
  nanochat eval --compare evals/before evals/after
"""
_EXAMPLES_OF_JUDGE = """
\b
Examples:
  nanochat judge evals/nanochat-tiny/samples.jsonl
  nanochat judge samples.jsonl --problems problems.jsonl --out verdicts.jsonl --sandbox landlock
"""

_ks_option = click.option(
    "--k",
    "ks",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    show_default=True,
    help="For which k pass@k is told; repeatable.",
)
_splits_option = click.option(
    "--split",
    "splits",
    type=click.Choice(get_args(Split)),
    multiple=True,
    help="Only problems of this split; repeatable.  [default: all]",
)
_limit_option = click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=0,
    help="So many problems at most, always the same ones.  [default: all]",
)


@click.command("eval", epilog=_EXAMPLES)
@model_argument
@click.option(
    "--text",
    "texts",
    multiple=True,
    metavar="PATH",
    help="Score this text, too: a file, a folder, a glob, hub:org/name, or own; repeatable.",
)
@click.option(
    "--convention",
    type=click.Choice(get_args(Convention)),
    default="overlapping",
    show_default=True,
    help="How windows lie in a text that is longer than the context.",
)
@click.option(
    "--problems", metavar="SET", help=f"{SET}  [default: own, unless only texts are asked for]"
)
@click.option(
    "--lm-eval",
    "tasks",
    multiple=True,
    metavar="TASK",
    help="A task of EleutherAI's lm-evaluation-harness, or a YAML file of one; repeatable.",
)
@click.option(
    "--few-shot",
    type=click.IntRange(min=0),
    metavar="N",
    help="Examples before each question of --lm-eval.  [default: as the task says]",
)
@levels_option
@_splits_option
@_limit_option
@click.option(
    "--samples",
    "num_samples",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Of each problem.",
)
@_ks_option
@temperature_option
@top_p_option
@max_tokens_option
@seed_option
@click.option(
    "--experience",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the model reads before each problem: a library that `nanochat learn` has written.",
)
@click.option(
    "--examples",
    "choice",
    type=click.Choice(get_args(Choice)),
    help="Which examples of that library.  [default: similar]",
)
@click.option(
    "--experience-seed",
    type=int,
    help="Of the draw among its examples.  [default: 0]",
)
@input_seed_option
@sandbox_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of what is written; an interrupted run goes on there.  [default: evals/MODEL]",
)
@overwrite_option
@click.option(
    "--compare",
    "compared",
    type=click.Path(path_type=Path),
    nargs=2,
    metavar="BEFORE AFTER",
    help="Compare the results in two folders, and evaluate nothing.",
)
@backend_option
@threads_option
@unpinned_option
@as_json_option
def evaluate(
    *,
    model: str,
    texts: Sequence[str],
    convention: Convention,
    problems: str | None,
    tasks: Sequence[str],
    few_shot: int | None,
    out: Path | None,
    overwrite: bool,
    compared: tuple[Path, Path] | None,
    experience: Path | None,
    choice: Choice | None,
    experience_seed: int | None,
    backend: str,
    threads: int | None,
    unpinned: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Measure a model: bits for a byte of text, and how many of the programs that it writes are right.

    Each problem is the beginning of a Rust function, which the model completes. What it writes is compiled and run in a
    sandbox, on arguments whose right results it never sees. Rates are over all samples, also those that never end.

    Without --text, --problems and --lm-eval, text and problems are this package's own.
    """
    if compared:
        _compare(compared, as_json=as_json)
        return
    from nanochat.evaluation.completing import Drawing
    from nanochat.evaluation.evaluate import (
        evaluate_programs,
        evaluate_texts,
        model_record,
        texts_of,
    )
    from nanochat.evaluation.results import markdown, save
    from nanochat.experience.library import read_library
    from nanochat.experience.opening import Experience
    from nanochat.files import atomic_write
    from nanochat.lm import Model

    if tasks:
        require_packages("eval", "lm_eval")
    if experience is None and (choice is not None or experience_seed is not None):
        raise InputError(
            "--examples and --experience-seed choose from a library: pass one as --experience"
        )
    drawing = Drawing(
        **{
            name: asked.pop(name)
            for name in ("num_samples", "temperature", "top_p", "max_tokens", "seed")
        }
    )
    both = not texts and problems is None and not tasks
    if experience is not None and problems is None and not both:
        raise InputError("--experience stands before problems: pass --problems, or leave it out")
    library = None if experience is None else read_library(experience)
    programs = _programs(asked, problems=problems or "own", drawing=drawing)
    named = texts_of(texts or ("own",)) if texts or both else {}
    folder = out or Path("evals", Path(model).name)
    if overwrite and (folder / "samples.jsonl").exists():
        shutil.rmtree(folder)
    with (
        Model.from_pretrained(
            model, backend=backend, num_threads=threads, unpinned=unpinned
        ) as loaded,
        progress_bars() as progress,
    ):
        result: dict[str, Any] = {"model": model_record(loaded)}
        # First what may find a mistake.
        if problems is not None or both:
            opening = None
            if library is not None:
                opening = Experience(
                    library,
                    loaded.tokenizer,
                    room=loaded.config.context_length - drawing.max_tokens,
                    choice=choice or "similar",
                    seed=experience_seed or 0,
                )
                result["experience"] = opening.describe()
            result["drawing"] = vars(drawing)
            result["programs"] = evaluate_programs(loaded, programs, folder, progress, opening)
        if named:
            result["text"] = evaluate_texts(loaded, named, convention, progress)
        if tasks:
            from nanochat.evaluation.tasks import run_tasks

            result["lm_eval"] = run_tasks(
                loaded, tasks, num_fewshot=few_shot, limit=asked["limit"] or None, seed=drawing.seed
            )
    path = save(folder, result)
    atomic_write(folder / "card.md", markdown(result).encode())
    if as_json:
        print_json(result)
    else:
        _print(result)
    note(f"wrote {path} and {folder / 'card.md'}")


@click.command(epilog=_EXAMPLES_OF_JUDGE)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--problems", default="own", show_default=True, metavar="SET", help=SET)
@levels_option
@_splits_option
@_limit_option
@_ks_option
@input_seed_option
@sandbox_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="File of the verdicts.  [default: verdicts.jsonl beside FILE]",
)
@overwrite_option
@as_json_option
def judge(*, file: Path, out: Path | None, overwrite: bool, as_json: bool, **asked: Any) -> None:
    """Judge programs again that `nanochat eval` has written down, without the model that wrote them.

    FILE is the samples.jsonl of an evaluation. The problems must be those that it was drawn for.
    """
    from nanochat.evaluation.evaluate import judge_again
    from nanochat.evaluation.programs import VERDICTS_FILE

    into = out or file.with_name(VERDICTS_FILE)
    if overwrite:
        into.unlink(missing_ok=True)
    with progress_bars() as progress:
        found = judge_again(file, into, _programs(asked), progress)
    if as_json:
        print_json(found)
    else:
        _print({"programs": found})
    note(f"wrote {into}")


def _programs(asked: Mapping[str, Any], **more: Any) -> Any:
    from nanochat.evaluation.evaluate import Programs

    return Programs(**asked, **more)


def _compare(folders: tuple[Path, Path], *, as_json: bool) -> None:
    from nanochat.evaluation.comparing import compare

    found = compare(*folders)
    if as_json:
        print_json({name: estimate._asdict() for name, estimate in found.items()})
        return
    rows = [
        (name, f"{100 * e.value:+.1f} %", f"{100 * e.low:+.1f} to {100 * e.high:+.1f} %")
        for name, e in found.items()
    ]
    print_table(rows, header=("rate", f"{folders[1]} over {folders[0]}", "95 %"))


def _print(result: Mapping[str, Any]) -> None:
    from nanochat.evaluation.results import estimates

    if text := result.get("text"):
        print_table(
            [
                ("bits per byte", f"{text['bits_per_byte']:.4f}"),
                ("perplexity", f"{text['perplexity']:.2f}"),
                ("texts, tokens, bytes", f"{text['documents']}, {text['tokens']}, {text['bytes']}"),
                ("windows", f"{text['window']} tokens, {text['convention']}"),
            ]
        )
    if tasks := result.get("lm_eval"):
        rows = [
            (name, metric, f"{of['value']:.4f}", f"{of['stderr']:.4f}" if of["stderr"] else "")
            for name, task in tasks["tasks"].items()
            for metric, of in task["metrics"].items()
        ]
        write("\n" * bool(text))
        print_table(rows, header=("task", "metric", "value", "standard error"))
    if found := result.get("programs"):
        write("\n" * bool(text or tasks))
        rows = [
            (name, f"{100 * e.value:.1f} %", f"{100 * e.low:.1f} to {100 * e.high:.1f} %", meaning)
            for name, e, meaning in estimates(found)
        ]
        print_table(rows, header=("rate", "value", "95 %", "meaning"))
        write("\n")
        names = ("compiles", "runs", "passes")
        table = [
            (
                level,
                of["num_problems"],
                *(f"{100 * of['rates'][name]['value']:.1f} %" for name in names),
            )
            for level, of in found["by_level"].items()
        ]
        print_table(table, header=("level", "problems", *names))
        write("\n")
        print_table(list(found["verdicts"].items()), header=("verdict", "samples"))
