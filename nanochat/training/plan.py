"""This file holds `nanochat.train`, and the plan of a run: what was asked, checked before anything is written."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import cast

from nanochat.config import ModelConfig, config_to_dict
from nanochat.errors import (
    BackendError,
    ConfigError,
    TrainingError,
    counted,
    did_you_mean,
    how_to_install,
)
from nanochat.presets import PRESETS, preset
from nanochat.shapes import num_parameters
from nanochat.training.beginning import begin_with, config_of
from nanochat.training.budget import seconds_of
from nanochat.training.configuration import (
    LENGTHS,
    Configuration,
    TextSettings,
    configuration_of,
    prepared,
    read_configuration,
)
from nanochat.training.loop import Trainer
from nanochat.training.phases import stages
from nanochat.training.progress import progress
from nanochat.training.recipe import ENDLESS, Recipe, merged, recipe_from_dict, recipe_to_dict
from nanochat.training.run_log import LogEntry
from nanochat.training.settings import TRAINING
from nanochat.training.snapshot import holds_run, load_record
from nanochat.training.unused import warn_of_unused
from nanochat.zoo.catalog import CATALOG, canonical

__all__ = ["Plan", "events", "find_shape", "plan", "recipe_of", "run_watched", "train"]

# Without these, [model] changes another.
_REQUIRED = {each.name for each in fields(ModelConfig) if each.default is MISSING}
# Settings in an error.
_MOST_NAMED = 5


def _ignore(*_: object) -> None:
    """What nobody asked for."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that may begin, or go on.

    Parameters
    ----------
    recipe : Recipe
        With the settings that were changed.
    out : Path
        The directory of the run.
    data : Path, dict of str to Path, or TextSettings
        Prepared tokens, several by their names, or the text of which they are made, in the directory of the run.
    start : Path, optional
        The run or snapshot from which it goes on.
    weights : Path, optional
        The run, snapshot or model with whose weights it begins.
    """

    recipe: Recipe
    out: Path
    data: Path | Mapping[str, Path] | TextSettings
    start: Path | None = None
    weights: Path | None = None

    def trainer(
        self, *, device: str = "auto", num_threads: int | None = None, compile_model: bool = True
    ) -> Trainer:
        """The run, ready to go, with tokens prepared if they are not there; see `Trainer`."""
        beginning = None
        if self.weights is not None:
            first = stages(self.recipe)[0].recipe
            rounds = first.precision.weights == "ternary"
            beginning = begin_with(self.weights, self.recipe.model, rounds=rounds)
        data = prepared(self.data, self.out) if isinstance(self.data, TextSettings) else self.data
        trainer = Trainer(
            self.recipe,
            data,
            self.out,
            start=self.start,
            weights=None if beginning is None else beginning.weights,
            device=device,
            num_threads=num_threads,
            compile_model=compile_model,
        )
        if beginning is not None:
            beginning.require_tokenizer(trainer.shards)
        return trainer


def train(
    config: Path | str | Mapping[str, object] | None = None,
    *,
    changes: Mapping[str, object] | None = None,
    data: Path | str | Mapping[str, Path | str] | None = None,
    out: Path | str | None = None,
    start: Path | str | None = None,
    weights: Path | str | None = None,
    resume: bool = False,
    device: str = "auto",
    num_threads: int | None = None,
    compile_model: bool = True,
    show: Callable[[LogEntry], None] | None = None,
    tensorboard: bool = False,
) -> Path:
    """Train a model, as ``nanochat train`` does.

    Parameters
    ----------
    config : Path, str or dict, optional
        A configuration: the name of its file, or what would stand in it. Not needed with `start` or `resume`; one
        that names no model changes the recipe of `start`, or takes the model of `weights`.
    changes : dict, optional
        Settings by name, such as ``{"steps": 100, "optimizer.matrices.rate": 0.01}``.
    data : Path, str or dict, optional
        Prepared tokens, if the configuration names no text; several by names, which ``data.mixture`` weighs.
    out : Path or str, optional
        The directory of the run; by default that which the configuration names.
    start, resume : Path or str, bool
        Another run, or a snapshot of it, to branch off; or whether to go on with the run in `out`.
    weights : Path or str, optional
        Another run, a snapshot of it or a model, with whose weights to begin at step 0, on whatever data.
    device, num_threads, compile_model
        See `nanochat.training.loop.Trainer`.
    show : callable, optional
        Is called with every line of the log; by default they are shown on standard error.
    tensorboard : bool
        Whether they are written for TensorBoard, too, in ``tensorboard`` in the directory of the run.

    Returns
    -------
    Path
        The directory of the run; `nanochat.from_pretrained` reads the ``model`` in it, which is not written if the last
        weights are unquantised.

    Raises
    ------
    BackendError
        If the package tensorboard is asked for and not installed.
    ConfigError
        If the configuration cannot be read or cannot work.
    TrainingError
        If the run cannot begin, or go on.
    KeyboardInterrupt
        After a snapshot was saved, if the run was interrupted.
    """
    board = events(wanted=tensorboard)
    planned = plan(
        config,
        changes=[*(changes or {}).items()],
        data=_paths(data),
        out=None if out is None else Path(out),
        start=None if start is None else Path(start),
        weights=None if weights is None else Path(weights),
        resume=resume,
    )
    trainer = planned.trainer(device=device, num_threads=num_threads, compile_model=compile_model)
    shown = (
        progress(trainer.recipe, trainer.step, compiling=compile_model)
        if show is None
        else nullcontext((show, _ignore))
    )
    finished = run_watched(trainer, board(planned.out, trainer.step), shown)
    if not finished:
        raise KeyboardInterrupt
    return planned.out


def run_watched(
    trainer: Trainer,
    board: AbstractContextManager[Callable[[LogEntry], None]],
    shown: AbstractContextManager[tuple[Callable[[LogEntry], None], Callable[[int, int], None]]],
    see: Callable[[LogEntry], None] = _ignore,
) -> bool:
    """Run a trainer with what `events` and `progress` give; `see` is told of each entry first."""
    with board as add, shown as (show, watch):

        def tell(entry: LogEntry) -> None:
            see(entry)
            add(entry)
            show(entry)

        return trainer.run(tell, watch)


def events(
    *, wanted: bool
) -> Callable[[Path, int], AbstractContextManager[Callable[[LogEntry], None]]]:
    """What opens, for the directory of a run and its step, a writer of entries for TensorBoard; or of none.

    Raises
    ------
    BackendError
        If its package is not installed.
    """
    if not wanted:
        return lambda *_: nullcontext(_ignore)
    try:
        from nanochat.training.tensorboard import TensorBoard
    except ModuleNotFoundError as error:
        raise BackendError(
            f"tensorboard=True needs the package {error.name}: {how_to_install('tensorboard')}"
        ) from error
    return TensorBoard


def plan(
    config: Path | str | Mapping[str, object] | None = None,
    *,
    preset_name: str | None = None,
    changes: Sequence[tuple[str, object]] = (),
    data: Path | Mapping[str, Path] | None = None,
    out: Path | None = None,
    start: Path | None = None,
    weights: Path | None = None,
    resume: bool = False,
) -> Plan:
    """What is asked of a run, as far as it can be checked before the data are read; see `train`.

    Raises
    ------
    ConfigError
        If the configuration cannot be read or cannot work, or something lacks.
    TrainingError
        If there is a run in the directory already, or none to go on with.
    """
    whole = _read(config)
    out = out or whole.out
    if out is None:
        raise ConfigError("pass the directory of the run: --out, or a CONFIG with out")
    if start and weights:
        raise ConfigError("--start and --weights both say what the run begins with: leave out one")
    if resume:
        if preset_name or start or changes or weights:
            raise ConfigError(
                "--resume takes the recipe of the snapshot: leave out --preset, --start, --weights, --set"
            )
        recipe, start = load_record(out).recipe, out
        if whole.preset or whole.fields:
            _require_same(_recipe(None, whole, out, None, ()), recipe, out)
    else:
        if holds_run(out):
            raise TrainingError(
                f"{out} already holds a run: pass --resume to go on, or another --out"
            )
        weights = weights or (None if start else whole.weights)
        recipe = _recipe(preset_name, whole, start, weights, changes)
        # Before the text is prepared, which may take hours.
        warn_of_unused(stages(recipe))
    found = data or whole.text
    if found is None:
        found = out / "data"
        if not found.is_dir():
            raise ConfigError("pass what to train on: --data, or a CONFIG with [text]")
    return Plan(recipe=recipe, out=out, data=found, start=start, weights=weights)


def find_shape(name: str) -> ModelConfig:
    """The configuration of a preset or of a name of the catalog, wherever its weights are.

    Raises
    ------
    ConfigError
        If there is no such name, or nothing is known of its shape.
    """
    if name in PRESETS:
        return preset(name)
    known = {entry.name: entry.config for entry in CATALOG.values() if entry.config is not None}
    found = known.get(canonical(name))
    if found is None:
        raise ConfigError(
            f"no shape is known by the name {name!r:.80}{did_you_mean(name, [*PRESETS, *known])}: choose one of "
            f"{', '.join(PRESETS)}, or a model of `nanochat models list` whose size is told there"
        )
    return found


def recipe_of(
    config: Path | str | Mapping[str, object] | None = None,
    *,
    preset_name: str | None = None,
    changes: Sequence[tuple[str, object]] = (),
    start: Path | None = None,
    weights: Path | None = None,
) -> Recipe:
    """The recipe of `plan`, which needs neither data nor a directory."""
    whole = _read(config)
    return _recipe(preset_name, whole, start, weights or whole.weights, changes)


def _paths(
    data: Path | str | Mapping[str, Path | str] | None,
) -> Path | Mapping[str, Path] | None:
    if isinstance(data, Mapping):
        return {name: Path(each) for name, each in data.items()}
    return None if data is None else Path(data)


def _read(config: Path | str | Mapping[str, object] | None) -> Configuration:
    if config is None:
        return Configuration(fields={})
    if isinstance(config, Mapping):
        return configuration_of(config, "config")
    return read_configuration(Path(config))


def _recipe(
    preset_name: str | None,
    config: Configuration,
    start: Path | None,
    weights: Path | None,
    changes: Sequence[tuple[str, object]],
) -> Recipe:
    base = dict(_base(preset_name, config, start, weights))
    if any(name in config.fields for name in LENGTHS):
        base.pop("steps", None)
    asked = cast("dict[str, object]", merged(base, config.fields))
    for name, value in changes:
        if name in LENGTHS:
            for other in LENGTHS:
                asked.pop(other, None)
        if name in LENGTHS[1:]:
            asked[name] = value
        else:
            TRAINING.change(asked, name, value)
    return _with_steps(asked)


def _with_steps(asked: dict[str, object]) -> Recipe:
    """The recipe of these fields, which may say otherwise than in steps how long it is."""
    named = [name for name in LENGTHS if name in asked]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} both say how long the run is: leave out one")
    if asked.get("phases"):
        if named not in ([], ["steps"]):
            raise ConfigError(f"{named[0]}: phases have steps of their own; leave it out")
        return recipe_from_dict(asked)
    if named == ["steps"]:
        return recipe_from_dict(asked)
    tokens, budget = asked.pop("tokens_per_parameter", None), asked.pop("budget", None)
    # What was written is looked at before what was not.
    found = recipe_from_dict({**asked, "steps": ENDLESS})
    if budget is not None:
        run = dataclasses.replace(found.run, budget=seconds_of(budget))
        return dataclasses.replace(found, run=run)
    if tokens is None:
        return recipe_from_dict(asked)
    if not isinstance(tokens, int | float) or not 0 < tokens < math.inf:
        raise ConfigError(f"tokens_per_parameter={tokens!r:.80}: write a number above 0")
    each = found.data.batch_size * found.data.length
    return recipe_from_dict(
        {**asked, "steps": math.ceil(tokens * num_parameters(found.model) / each)}
    )


def _require_same(asked: Recipe, found: Recipe, run: Path) -> None:
    ours, theirs = _flat(recipe_to_dict(asked)), _flat(recipe_to_dict(found))
    said = [
        f"{name} ({ours.get(name, 'none')!s:.40} for {theirs.get(name, 'none')!s:.40})"
        for name in {**theirs, **ours}
        # A run has decided that.
        if ours.get(name) not in (theirs.get(name), "auto")
    ]
    if said:
        more = len(said) - _MOST_NAMED
        others = f" and {counted(more, 'other')}" if more > 0 else ""
        raise ConfigError(
            f"CONFIG has other settings than the run in {run}: {', '.join(said[:_MOST_NAMED])}{others}: pass --out "
            f"{run} in place of CONFIG to go on with those of the run, or branch off with --start {run} --out OTHER"
        )


def _flat(found: object, name: str = "") -> dict[str, object]:
    """Each value by its place in groups and lists."""
    if isinstance(found, list | tuple):
        found = {str(number): each for number, each in enumerate(found)}
    if not isinstance(found, Mapping):
        return {name: found}
    flat: dict[str, object] = {}
    for key, value in found.items():
        flat |= _flat(value, f"{name}.{key}" if name else key)
    return flat


def _base(
    preset_name: str | None, config: Configuration, start: Path | None, weights: Path | None
) -> Mapping[str, object]:
    """What the fields of a configuration change."""
    model = config.fields.get("model")
    is_whole = isinstance(model, Mapping) and model.keys() >= _REQUIRED
    if preset_name and is_whole and config.preset is None:
        raise ConfigError(
            f"--preset {preset_name} would change nothing of a CONFIG with a whole [model]: leave out one of them"
        )
    shape = preset_name or config.preset
    if shape is not None:
        return {"model": config_to_dict(find_shape(shape))}
    if is_whole:
        return {}
    if start is not None:
        return recipe_to_dict(load_record(start).recipe)
    if weights is not None:
        return {"model": config_to_dict(config_of(weights))}
    if not config.fields:
        raise ConfigError("pass what to train: a CONFIG, --preset, or --start with a run")
    if model is None:
        raise ConfigError('CONFIG names no model: write preset = "tiny" into it, say')
    return {}
