"""This file holds the recipe of a training run: every number that decides its result, in groups and phases."""

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal

from pydantic import ValidationError
from pydantic.dataclasses import dataclass

from nanochat.config import ModelConfig, config_from_dict, config_to_dict
from nanochat.data.batch import Packing
from nanochat.errors import ConfigError
from nanochat.shapes import shapes
from nanochat.training.checks import refusal
from nanochat.training.fire import Fire
from nanochat.training.objectives.settings import Objective, Reference, Teacher
from nanochat.training.roles import OptimizerSettings, require_roles
from nanochat.training.values import CHECKED, Count, NotNegative, Share, Whole
from nanochat.weights import named_leaves

__all__ = [
    "ENDLESS",
    "DataSettings",
    "Phase",
    "Precision",
    "Recipe",
    "Rhythm",
    "RunSettings",
    "Schedule",
    "merged",
    "recipe_from_dict",
    "recipe_to_dict",
]


# Steps of a run that ends when its time is over, before they are decided.
ENDLESS = 2**31


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class DataSettings:
    """What an update reads.

    Parameters
    ----------
    batch_size, length : int
        Sequences of one update, tokens of one sequence.
    microbatch : int
        Sequences that are computed at a time, whose gradients are summed: fewer take less memory. 0 is all. The sum is
        that of the whole batch, but for the terms of routers and, where sequences have fewer targets than tokens are
        kept (`objective.keep_tokens`), the loss of those: they are means of each microbatch.
    packing : {"windows", "best-fit"}
        Stretches of the text, wherever documents end; or whole documents, as many as fit, none of which sees another.
    document_masks : bool
        Whether the documents in a window do not see each other either.
    mixture : dict of str to float
        Weight of each of several sources in the samples, by their names; without it, by their tokens. A phase has
        another as a whole.
    """

    batch_size: Count = 16
    length: Count = 512
    microbatch: Whole = 0
    packing: Packing = "windows"
    document_masks: bool = False
    mixture: dict[str, NotNegative] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Schedule:
    """Learning rates over a run, as shares of their peaks.

    Parameters
    ----------
    warmup_steps, decay_steps : int
        They rise linearly over the first, stay, and fall over the last: without these they are constant, and with all
        steps but the first it is no more than a fall.
    tail : {"linear", "1-sqrt", "cosine"}
        How they fall: along a line, one minus the root of the share that is done, or half a cosine.
    floor : float
        To where they fall.

    References
    ----------
    .. [1] A. Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024, section
       3. arXiv:2405.18392
    """

    warmup_steps: Whole = 40
    decay_steps: Whole = 0
    tail: Literal["linear", "1-sqrt", "cosine"] = "linear"
    floor: Share = 0.0

    def require(self, steps: int) -> None:
        """Refuse a run of so few steps that it cannot both warm up and decay.

        Raises
        ------
        ConfigError
            If that is so.
        """
        if self.warmup_steps + self.decay_steps > steps:
            raise ConfigError(
                f"schedule.warmup_steps={self.warmup_steps} and schedule.decay_steps={self.decay_steps} exceed "
                f"steps={steps}: train longer, or shorten them: schedule.warmup_steps=0, say"
            )


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Precision:
    """What numbers are rounded to in training.

    Parameters
    ----------
    weights : {"ternary", "float"}
        "float" trains the unquantised twin.
    products : {"auto", "float32", "bfloat16"}
        Type of the products with weights. In bfloat16 codes are exact and scales round. "auto" is what is faster
        when a run begins.
    """

    weights: Literal["ternary", "float"] = "ternary"
    products: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Rhythm:
    """When a run is evaluated and saved, which changes no number of it.

    Parameters
    ----------
    evaluate_every, snapshot_every : int
        Steps between held-out evaluations and between snapshots.
    keep_snapshots : int
        Snapshots that are kept, the last ones, besides that of the best evaluation.
    """

    evaluate_every: Count = 100
    snapshot_every: Count = 100
    keep_snapshots: Count = 2


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class RunSettings(Rhythm):
    """How a run goes, which changes no number of it.

    Parameters
    ----------
    evaluation_windows : int
        Held-out sequences in an evaluation during the run; the last one uses as many as were trained on, if they are
        more.
    workers : int
        Processes that prepare the next batches meanwhile; 0 is none, which does where no step waits for its batch.
    budget : float
        Seconds that the run takes, whose steps are decided when its rate must fall; 0 is as many as its steps need.
    sample_tokens : int
        Tokens that the model writes at each evaluation, after the beginning of the held-out text.
    activation_checkpointing : bool
        Whether layers keep their inputs only and are computed again for the gradient: much less memory, a third more
        time.
    """

    evaluation_windows: Count = 64
    workers: Whole = 0
    budget: NotNegative = 0.0
    sample_tokens: Whole = 40
    activation_checkpointing: bool = False


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Phase:
    """A part of a run, and the groups of settings that are other in it, with those settings; it may begin with FIRE.

    What the optimizer keeps of a parameter goes on as long as its rule keeps the same, and batches as long as the
    settings of the data are the same. A phase with a schedule has one of its own, over its steps and with nothing of
    the run's; all others share that.
    """

    steps: Count
    fire: Fire | None = None
    changes: dict[
        Literal["data", "optimizer", "schedule", "objective", "precision"], dict[str, Any]
    ]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Recipe:
    """A training run.

    Parameters
    ----------
    steps : int
        Updates, in all phases together.
    seed : int
        Of the initial weights and of the order of the data.
    """

    model: ModelConfig
    steps: Count
    seed: Whole = 0
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: Schedule = field(default_factory=Schedule)
    objective: Objective = field(default_factory=Objective)
    reference: Reference = field(default_factory=Reference)
    teacher: Teacher = field(default_factory=Teacher)
    precision: Precision = field(default_factory=Precision)
    run: RunSettings = field(default_factory=RunSettings)
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        model, length = self.model, self.data.length
        lengths = [phase.steps for phase in self.phases]
        if lengths and sum(lengths) != self.steps:
            raise ConfigError(
                f"steps={self.steps} but the phases have {' + '.join(map(str, lengths))}: change one of them, or leave "
                "out the steps of the run or of its last phase"
            )
        if self.phases and self.phases[0].fire is not None:
            raise ConfigError(
                "the first phase has fire, which is for matrices that have learned: give it to a later one"
            )
        self.schedule.require(self.steps)
        if self.data.microbatch and self.data.batch_size % self.data.microbatch:
            raise ConfigError(
                f"data.microbatch={self.data.microbatch} does not divide data.batch_size={self.data.batch_size}: "
                "choose one that does"
            )
        if length > model.context_length:
            raise ConfigError(
                f"data.length={length} exceeds the model's context_length={model.context_length}: shorten it"
            )
        if model.rotation_block:
            raise ConfigError(
                f"rotation_block={model.rotation_block}: models of rotated inputs are read and run, not trained; "
                "set model.rotation_block=0"
            )
        if model.num_ahead >= length:
            raise ConfigError(
                f"data.length={length} leaves no target for num_ahead={model.num_ahead}: lengthen it"
            )
        if len(self.objective.later_tokens) >= length:
            raise ConfigError(
                f"data.length={length} leaves no target for {len(self.objective.later_tokens)} factors of "
                "objective.later_tokens: lengthen it"
            )
        if self.objective.drop_attention_gradients:
            if self.objective.keep_tokens == 1:
                raise ConfigError(
                    "objective.drop_attention_gradients=true drops nothing while all tokens are kept: set "
                    "objective.keep_tokens=0.5, say"
                )
            if "delta" in model.layer_pattern:
                raise ConfigError(
                    f"objective.drop_attention_gradients=true with layer_pattern={list(model.layer_pattern)}: delta "
                    "layers pass gradients on through what they remember; set "
                    "objective.drop_attention_gradients=false"
                )
        if self.objective.exits == "improvement":
            if model.loop_count == 1:
                raise ConfigError(
                    'objective.exits="improvement" trains the gate of a loop, and the model has none: set '
                    "model.loop_count=2, say"
                )
            if self.optimizer.only != ("exits",):
                raise ConfigError(
                    'objective.exits="improvement" trains nothing but the gate: set optimizer.only=["exits"] in the '
                    "same phase"
                )
        require_roles(self.optimizer, named_leaves(shapes(model)))


def recipe_to_dict(recipe: Recipe) -> dict[str, object]:
    """All settings in their groups, ready for JSON."""
    # The last phase lasts to the end of the run, of which more steps may be asked later.
    phases = [
        {
            "steps": phase.steps,
            **({"fire": dataclasses.asdict(phase.fire)} if phase.fire else {}),
            **copy.deepcopy(phase.changes),
        }
        for phase in recipe.phases
    ]
    for phase in phases[-1:]:
        del phase["steps"]
    return {
        **dataclasses.asdict(recipe),
        "model": config_to_dict(recipe.model),
        "phases": phases,
    }


def recipe_from_dict(fields: Mapping[str, object]) -> Recipe:
    """Rebuild a recipe from `recipe_to_dict`; `nested` makes one of what was written before there were groups.

    What is absent has its default; of a role's rule only what differs from it need be given.

    Raises
    ------
    ConfigError
        If a setting is unknown, absent without a default, or of a value that it may not have.
    """
    fields = dict(fields)
    model = fields.get("model")
    if not isinstance(model, Mapping):
        raise ConfigError(
            f"not a recipe: its model is {model!r:.40}, not a group of settings; use a recipe of `nanochat train` as "
            "it was written"
        )
    rules = dataclasses.asdict(OptimizerSettings())
    fields["optimizer"] = merged(rules, fields.get("optimizer", {}))
    if fields.get("phases"):
        fields["phases"], fields["steps"] = _phases(fields["phases"], fields.get("steps", 0))
    try:
        return Recipe(**{**fields, "model": config_from_dict(model)})  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        raise refusal(error, Recipe) from error


def merged(old: object, new: object) -> object:
    """A group of settings with some changed; another rule, or mixture, leaves nothing of the one before."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return new
    if new.get("rule", old.get("rule")) != old.get("rule"):
        return new
    return {
        **old,
        **{
            # A weight says nothing without the others.
            name: value if name == "mixture" else merged(old.get(name), value)
            for name, value in new.items()
        },
    }


def _phases(found: object, steps: Any) -> tuple[list[dict[str, Any]], Any]:
    """Phases as `Phase` has them, and the steps of all: those of the last phase, or of all, may be absent."""
    if not isinstance(found, list | tuple) or not all(isinstance(each, Mapping) for each in found):
        raise ConfigError(f"phases={found!r:.80}: write a list of groups of settings")
    phases = [
        {
            "steps": each.get("steps", 0),
            "fire": each.get("fire"),
            "changes": {k: value for k, value in each.items() if k not in ("steps", "fire")},
        }
        for each in found
    ]
    lengths = [each["steps"] for each in phases]
    if type(steps) is int and all(type(each) is int for each in lengths):
        if steps and not lengths[-1]:
            phases[-1]["steps"] = steps - sum(lengths)
        steps = steps or sum(lengths)
    return phases, steps
