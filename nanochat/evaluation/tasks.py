"""This file holds the evaluation of a model by tasks of EleutherAI's lm-evaluation-harness."""

import importlib.metadata
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from nanochat.errors import DataError, InputError, did_you_mean
from nanochat.evaluation.harness import NanochatLM
from nanochat.lm import Model

__all__ = ["run_tasks"]

# Of the metrics whose error is known from resampling alone.
_NUM_RESAMPLES = 1000
# Families of tasks that run what models write, and are not marked so.
_UNMARKED = ("cruxeval",)
_SINGLE_PROCESS = "DISABLE_MULTIPROC"


def run_tasks(
    model: Model,
    tasks: Sequence[str],
    *,
    include_path: str | Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    seed: int = 0,
) -> dict[str, object]:
    """Evaluate a model by tasks of the harness, and return what each metric says of it; ready for JSON.

    Parameters
    ----------
    tasks : sequence of str
        Names of tasks, of groups or tags of them, or with ``*``; or the paths of their YAML files.
    include_path : str or Path, optional
        A folder with YAML files of further tasks, which come before those of the harness.
    limit : int, optional
        Only the first so many documents of each task. What that gives is no result, but a trial.
    num_fewshot : int, optional
        Examples before each question, if not as many as the task says; a task that says 0 stays without.
    chat : bool
        Whether questions are asked in the model's chat template.
    seed : int
        0 chooses examples as the harness does by itself; any other chooses other ones.

    Raises
    ------
    ContextLengthError
        If an answer alone exceeds the model's context.
    DataError
        If a task cannot be loaded, as without its data, or a network to fetch them.
    InputError
        If a task is unknown or runs programs that the model writes, or an option is out of range.
    """
    if isinstance(tasks, str) or not tasks:
        raise InputError(f"tasks={tasks!r:.80}: pass a list with the name of at least one")
    for name, number, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0)):
        if number is not None and number < least:
            raise InputError(f"{name}={number}: pass {least} or more, or leave it out")
    with _seeded(seed), _single_process(), redirect_stdout(sys.stderr):
        manager, names = _manager([*tasks], include_path)
        loaded = _load(manager, names)
        for task in loaded["tasks"].values():
            if num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED + seed)
        results = evaluate(
            lm=NanochatLM(model, seed=seed),
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=_NUM_RESAMPLES,
            log_samples=False,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    return {
        "lm_eval": importlib.metadata.version("lm_eval"),
        "limit": limit,
        "chat": chat,
        "seed": seed,
        "tasks": {name: _task_record(results, name) for name in loaded["tasks"]},
        "groups": {
            name: _metrics(found, results["higher_is_better"].get(name, {}))
            for name, found in results.get("groups", {}).items()
        },
    }


def _manager(
    names: Sequence[str], include_path: str | Path | None
) -> tuple[TaskManager, list[str]]:
    """An index that has the named tasks, and their names; an error if there is none, or it runs programs."""
    if include_path is not None and not Path(include_path).is_dir():
        raise InputError(
            f"include_path={include_path} is no folder: pass one with YAML files of tasks"
        )
    if include_path is not None:
        # The harness has 14,000 files of tasks, whose reading takes a while.
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if all(isinstance(_configuration(manager, name).get("task"), str) for name in names):
            _require_harmless(manager, names)
            return manager, [*names]
    elif all(Path(name).is_file() for name in names):
        return TaskManager(include_defaults=False), [*names]
    manager = TaskManager(include_path=include_path and str(include_path))
    found: list[str] = []
    for name in names:
        matching = [name] if Path(name).is_file() else manager.match_tasks([name])
        if not matching:
            raise InputError(
                f"there is no task {name!r}{did_you_mean(name, manager.all_tasks)}: `lm-eval ls tasks` lists them, and "
                "include_path adds others"
            )
        found += matching
    _require_harmless(manager, found)
    return manager, found


def _configuration(manager: TaskManager, name: str) -> Mapping[str, Any]:
    entry = manager.task_index.get(name)
    return {} if entry is None or entry.cfg is None else entry.cfg


def _require_harmless(manager: TaskManager, names: Sequence[str]) -> None:
    """Refuse tasks that run programs which the model writes, before anything of them is loaded."""
    for name in names:
        entry = manager.task_index.get(name)
        if entry is None:
            continue
        members = _configuration(manager, name).get("task", [])
        inner = [each for each in members if isinstance(each, str)] * isinstance(members, list)
        _require_harmless(manager, [*inner, *(entry.tags if entry.cfg is None else [])])
        if _configuration(manager, name).get("unsafe_code") or name.startswith(_UNMARKED):
            raise _runs_programs(name)


def _runs_programs(name: str) -> InputError:
    return InputError(
        f"task {name} runs programs that the model writes, and the harness does so without a sandbox, with all that "
        "you may do: evaluate programs with --problems, where they are kept apart from this machine"
    )


def _load(manager: TaskManager, names: list[str]) -> Any:
    try:
        loaded = manager.load(names)
    # A task's own code and the readers of its data may fail with whatever Python has.
    except Exception as error:
        why = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{', '.join(names):.200} cannot be loaded ({type(error).__name__}: {why:.300}): the data of a task are "
            "fetched from the Hub once, for which there must be a network, and HF_HUB_OFFLINE must not be set; what is "
            "named in a task of your own must be there"
        ) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise _runs_programs(name)
    return loaded


def _task_record(results: Mapping[str, Any], name: str) -> dict[str, object]:
    return {
        "version": results["versions"].get(name),
        "num_fewshot": results["n-shot"].get(name),
        "documents": results["n-samples"][name]["effective"],
        "documents_of_the_task": results["n-samples"][name]["original"],
        "metrics": _metrics(results["results"][name], results["higher_is_better"].get(name, {})),
    }


def _metrics(
    found: Mapping[str, Any], directions: Mapping[str, bool | None]
) -> dict[str, dict[str, object]]:
    """Each metric, with its standard error, if there is one; behind its name the filter, if there is one."""
    metrics: dict[str, dict[str, object]] = {}
    for key, value in found.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = found.get(f"{metric}_stderr,{kind}")
        metrics[metric if kind == "none" else key] = {
            "value": float(value),
            "stderr": float(stderr) if isinstance(stderr, int | float) else None,
            "higher_is_better": directions.get(metric),
        }
    return metrics


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A block in which the generators that tasks share begin as the harness has them, and then as they were."""
    before, numpy_before = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(DEFAULT_RANDOM_SEED + seed)
    np.random.seed(DEFAULT_OTHER_SEED + seed)  # noqa: NPY002  # what tasks draw with
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(numpy_before)  # noqa: NPY002


@contextmanager
def _single_process() -> Iterator[None]:
    """A block in which the harness resamples without processes, which must not be forked beside kernels' threads."""
    before = os.environ.get(_SINGLE_PROCESS)
    os.environ[_SINGLE_PROCESS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SINGLE_PROCESS]
        else:
            os.environ[_SINGLE_PROCESS] = before
