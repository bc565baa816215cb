"""This file holds the plan of a run of reinforcement learning: what was asked, checked before anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nanochat.bundle import Bundle
from nanochat.errors import ConfigError, InputError, TrainingError
from nanochat.export.formats import load
from nanochat.problems import sets
from nanochat.problems.sets import ProblemSet, forbidden_for_training, measured_with
from nanochat.rl.loop import Reinforcement
from nanochat.rl.recipe import SETTINGS, Recipe, recipe_from_dict, stages
from nanochat.rl.rollouts import trained_on
from nanochat.sandbox.layers import Kind
from nanochat.training.beginning import begin_with, config_of
from nanochat.training.configuration import read_fields
from nanochat.training.recipe import merged
from nanochat.training.snapshot import find_snapshot, holds_run, load_record
from nanochat.zoo.hub import resolve

__all__ = ["Plan", "plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that may begin, or go on.

    Parameters
    ----------
    recipe : Recipe
        With the settings that were changed.
    out : Path
        The directory of the run.
    problems : ProblemSet
        That of ``problems.source``.
    resume : bool
        Whether it goes on with the run that is there.
    """

    recipe: Recipe
    out: Path
    problems: ProblemSet
    resume: bool = False

    def run(
        self,
        *,
        sandbox: Kind = "auto",
        backend: str = "auto",
        device: str = "auto",
        num_threads: int | None = None,
        compile_model: bool = False,
    ) -> Reinforcement:
        """The run, ready to go; see `Reinforcement`."""
        place, bundle = _find(self.recipe.model)
        beginning = begin_with(place, config_of(place))
        return Reinforcement(
            self.recipe,
            beginning.weights,
            bundle,
            self.problems,
            self.out,
            resume=self.resume,
            sandbox=sandbox,
            backend=backend,
            device=device,
            num_threads=num_threads,
            compile_model=compile_model,
        )


def plan(
    config: Path | Mapping[str, object] | None = None,
    *,
    model: str | None = None,
    problems: str | None = None,
    changes: Sequence[tuple[str, object]] = (),
    out: Path | None = None,
    resume: bool = False,
) -> Plan:
    """What is asked of a run, as far as it can be checked before a model is loaded.

    Parameters
    ----------
    config : Path or dict, optional
        A recipe in TOML or JSON, perhaps with ``out``, or what would stand in it.
    model, problems : str, optional
        In place of its ``model`` and ``problems.source``.
    changes : sequence of (str, object)
        Settings by name.
    resume : bool
        Go on with the run in `out`, whose recipe it is.

    Raises
    ------
    ConfigError
        If the recipe cannot be read or cannot work, or something lacks.
    InputError
        If the problems may not be trained on, or there are none.
    TrainingError
        If there is a run in the directory already, or none to go on with.
    """
    fields = dict(read_fields(config) if isinstance(config, Path) else config or {})
    named = fields.pop("out", None)
    if out is None and isinstance(named, str):
        out = Path(named)
    if out is None:
        raise ConfigError("pass the directory of the run: --out, or a recipe with out")
    if resume:
        if model or problems or changes or fields:
            raise ConfigError(
                "--resume takes the recipe of the snapshot: leave out --recipe, --model, --problems, --set"
            )
        beside = load_record(out).beside
        if "rl" not in beside:
            raise TrainingError(
                f"{out} is no run of `nanochat rl`: pass the directory of one, or begin with it: --model {out}"
            )
        recipe = recipe_from_dict(cast("Mapping[str, object]", beside["rl"]))
    else:
        if holds_run(out):
            raise TrainingError(
                f"{out} already holds a run: pass --resume to go on, or another --out"
            )
        asked = cast("dict[str, object]", merged(fields, {"model": model} if model else {}))
        if problems:
            SETTINGS.change(asked, "problems.source", problems)
        for name, value in changes:
            SETTINGS.change(asked, name, value)
        if "model" not in asked:
            raise ConfigError("pass what to begin with: --model nanochat-tiny, say")
        recipe = recipe_from_dict(asked)
    return Plan(recipe=recipe, out=out, problems=_problems(recipe), resume=resume)


def _problems(recipe: Recipe) -> ProblemSet:
    """The set that a run learns from, if it may."""
    found = sets.load(recipe.problems.source)
    known = measured_with()
    for stage in stages(recipe):
        settings = stage.recipe.problems
        if settings.source != recipe.problems.source:
            raise ConfigError(
                f"phase {stage.number + 1}: problems.source={settings.source!r}: a run learns from one set; leave it "
                "out there"
            )
        chosen = trained_on(found, settings)
        if not chosen.problems:
            levels = sorted({problem.level for problem in found.problems})
            raise InputError(
                f"{settings.source} has no problems to train on of levels {[*settings.levels]}: choose among {levels}"
            )
        if why := forbidden_for_training(chosen, known):
            raise InputError(why)
    return found


def _find(name: str) -> tuple[Path, Bundle]:
    """Where the weights of a model are, and the model; those of a run are the numbers that it rounds."""
    place = Path(name) if Path(name).is_dir() else resolve(name)
    if not place.is_dir():
        raise ConfigError(
            f"model={name!r:.80} is one file: pass a model directory, of which latent weights can be made"
        )
    try:
        snapshot = find_snapshot(place)
    except TrainingError:
        return place, load(place)
    found = load_record(snapshot).beside.get("rl")
    if isinstance(found, Mapping):
        # A run has the tokenizer of what it began with, and all else that is said of that.
        return place, _find(str(found["model"]))[1]
    directory = snapshot.parents[1] / "model"
    if not directory.is_dir():
        raise ConfigError(
            f"model={name!r:.80} is a run that has not ended, and has no model yet: resume it, or pass a model"
        )
    return place, load(directory)
