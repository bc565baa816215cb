"""This file holds the recipe of a run of reinforcement learning: every number that decides its result."""

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal, cast

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from nanochat.errors import ConfigError
from nanochat.problems.problem import Split
from nanochat.training.checks import refusal
from nanochat.training.fire import Fire
from nanochat.training.recipe import Precision, Rhythm, Schedule, merged
from nanochat.training.roles import OptimizerSettings
from nanochat.training.rules.adamw import AdamW
from nanochat.training.rules.muon import Muon
from nanochat.training.settings import Settings
from nanochat.training.values import CHECKED, Count, NotNegative, Part, Positive, Whole

__all__ = [
    "SETTINGS",
    "Advantage",
    "Evaluation",
    "Normaliser",
    "Policy",
    "Problems",
    "Recipe",
    "Reward",
    "RewardKind",
    "Rollout",
    "Stage",
    "recipe_from_dict",
    "recipe_to_dict",
    "stages",
]

Advantage = Literal["reinforce", "grpo", "dr-grpo", "maxrl"]
Normaliser = Literal["sequence", "token", "constant"]
RewardKind = Literal["pass", "staged", "compile", "teacher"]
Level = Annotated[int, Field(ge=-1, le=4, strict=True)]

_NORMALISERS: Mapping[Advantage, Normaliser] = {
    "reinforce": "token",
    "grpo": "sequence",
    "dr-grpo": "constant",
    "maxrl": "constant",
}


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Problems:
    """What is learnt from.

    Parameters
    ----------
    source : str
        A set, as `nanochat eval --problems` takes them, of which those of the split ``train`` are drawn.
    levels : list of int
        Which of its levels; all, if none is named.
    nontrivial : bool
        Whether those are left out whose right answer is a literal or a parameter, in evaluations, too.
    """

    source: str = "templates"
    levels: tuple[Level, ...] = ()
    nontrivial: bool = False


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Rollout:
    """What a model writes in a step.

    Parameters
    ----------
    prompts, samples : int
        Problems, of unlike families as far as there are so many, and samples of each.
    max_tokens : int
        Most tokens of a sample.
    temperature : float
        Logits are divided by this, where samples are drawn and where they are learnt from. Nothing else changes the
        distribution, so that what is learnt from is what was drawn from.
    groups : {"keep", "drop", "resample"}
        What becomes of a problem all of whose samples have the same reward, from which nothing is learnt: its tokens
        count in the normaliser, or do not, or others are drawn in its place, twice as many problems at most.
    """

    prompts: Count = 12
    samples: Annotated[int, Field(ge=2, strict=True)] = 32
    max_tokens: Count = 64
    temperature: Positive = 1.0
    groups: Literal["keep", "drop", "resample"] = "keep"


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Reward:
    """What a sample earns.

    Parameters
    ----------
    kind : {"pass", "staged", "compile", "teacher"}
        1 for what passes; with "staged" 0.2 for what returns on all inputs, with "compile" 1 for what type-checks; and
        0 for all else. "teacher" asks no judge: each token earns what it is likelier by another model, `teacher`.
    trivial : bool
        Whether what is not right and no attempt earns what "staged" and "compile" give: a literal, a parameter, what
        always returns the same, and what never names one of the parameters.
    shared : bool
        Whether samples of a problem that are wrong and wrote the same share what one of them would earn, which keeps a
        policy from writing one text for everything.
    truncated : {"count", "mask"}
        Whether samples that were cut off are learnt from as what they are, wrong, or not at all.
    shuffled : bool
        Whether what samples of a problem earn is dealt out among them by chance: a control, which must learn nothing.
    teacher : str
        A model with the same tokenizer, by its directory or name.
    collapse : float
        A run stops with an error when one text makes up more than this share of what was rewarded, since the last
        evaluation and in three unlike families or more; 1 is never.
    """

    kind: RewardKind = "pass"
    trivial: bool = True
    shared: bool = False
    truncated: Literal["count", "mask"] = "count"
    shuffled: bool = False
    teacher: str = ""
    collapse: Part = 0.5


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Policy:
    """What is learnt from rewards.

    Parameters
    ----------
    advantage : {"maxrl", "dr-grpo", "grpo", "reinforce"}
        What a sample is worth beside the others of its problem: see `nanochat.rl.advantages`.
    normaliser : {"auto", "constant", "sequence", "token"}
        What a token's share is divided by: samples times `rollout.max_tokens`, its sample's tokens, or all tokens.
        "auto" is what was published with the advantage.
    updates : int
        Passes over what was drawn in a step, each with an update.
    clip_low, clip_high : float
        How far the probability of a token may fall or rise, as a share, before it is learnt from no more. They say
        nothing where `updates` is 1.
    kl : float
        Factor of the divergence from the model that the run began with.
    entropy : float
        Factor of the entropy of the next token, which is to stay.
    rehearsal : float
        Factor of the divergence, in nats a token, from the model that the run began with, on texts that this one wrote
        freely before it: what keeps a model from forgetting them.
    rehearsed : int
        Tokens of such texts in a step.
    positives, negatives : int
        Samples of a problem that are worth more than its mean, and others, that are learnt from, chosen at random and
        weighed so that nothing is biased; 0 is all. The rest costs no time.
    ratio_cap : float
        Weighs a token by how much likelier it is in training than where it was drawn, to this at most; 0 does not.
    microbatch : int
        Tokens that are computed at a time, with filling.
    """

    advantage: Advantage = "maxrl"
    normaliser: Literal["auto", "sequence", "token", "constant"] = "auto"
    updates: Count = 1
    clip_low: Positive = 0.2
    clip_high: Positive = 0.28
    kl: NotNegative = 0.0
    entropy: NotNegative = 0.0
    rehearsal: NotNegative = 0.0
    rehearsed: Count = 1024
    positives: Whole = 0
    negatives: Whole = 0
    ratio_cap: NotNegative = 0.0
    microbatch: Count = 1024

    @property
    def normalised_by(self) -> Normaliser:
        """The normaliser, with "auto" decided."""
        return _NORMALISERS[self.advantage] if self.normaliser == "auto" else self.normaliser


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Evaluation:
    """What a model is measured with on the way, always the same.

    Parameters
    ----------
    source : str
        A set of problems; that which is learnt from, if it is empty.
    splits : list of str
        Which of its splits, apart.
    problems, samples : int
        Problems of a split, and samples of each, at the temperature of the rollouts; one more is the likeliest text.
    texts : list of str
        Files, folders and globs whose bits per byte are told; "own" is the sources of our problems.
    """

    source: str = ""
    splits: tuple[Split, ...] = ("train", "other-types", "other-names", "held-out")
    problems: Count = 40
    samples: Count = 4
    texts: tuple[str, ...] = ("own",)


def _optimizer() -> OptimizerSettings:
    """Rates at which codes flip within tens of steps, and a model goes on writing what it wrote."""
    return OptimizerSettings(
        matrices=Muon(rate=0.015),
        embedding=AdamW(rate=0.001),
        head=AdamW(rate=0.001),
        norms=AdamW(rate=0.002),
        streams=AdamW(rate=0.002),
        projections=AdamW(rate=0.002),
        gates=AdamW(rate=0.002),
        exits=AdamW(rate=0.002),
        router=AdamW(rate=0.002),
        convolutions=AdamW(rate=0.002),
    )


Group = Literal["problems", "rollout", "reward", "policy", "evaluation", "optimizer", "schedule"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Phase:
    """A part of a run, and the groups of settings that are other in it, with those settings; it may begin with FIRE."""

    steps: Count
    fire: Fire | None = None
    changes: dict[Group, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Recipe:
    """A run of reinforcement learning.

    Parameters
    ----------
    model : str
        The model that it begins with, by its directory or name; or another run, with the numbers that it rounds.
    steps : int
        Rollouts, in all phases together.
    seed : int
        Of the problems and samples that are drawn.
    patience : int
        Steps within which a ternary or 8-bit code must change, or the run stops with an error, since it learns nothing.
    """

    model: str
    steps: Count
    seed: Whole = 0
    patience: Count = 50
    problems: Problems = field(default_factory=Problems)
    rollout: Rollout = field(default_factory=Rollout)
    reward: Reward = field(default_factory=Reward)
    policy: Policy = field(default_factory=Policy)
    evaluation: Evaluation = field(default_factory=Evaluation)
    optimizer: OptimizerSettings = field(default_factory=_optimizer)
    schedule: Schedule = field(default_factory=lambda: Schedule(warmup_steps=5))
    precision: Precision = field(default_factory=lambda: Precision(products="float32"))
    run: Rhythm = field(default_factory=lambda: Rhythm(evaluate_every=25, snapshot_every=25))
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        lengths = [phase.steps for phase in self.phases]
        if lengths and sum(lengths) != self.steps:
            raise ConfigError(
                f"steps={self.steps} but the phases have {' + '.join(map(str, lengths))}: change one of them"
            )
        self.schedule.require(self.steps)
        if self.precision.weights != "ternary":
            raise ConfigError(
                f"precision.weights={self.precision.weights!r}: samples are drawn by an engine, whose codes are "
                "rounded; set precision.weights=ternary"
            )
        if self.precision.products == "auto":
            raise ConfigError(
                'precision.products="auto": set float32, or bfloat16 where `nanochat train` chooses it'
            )
        if (self.reward.kind == "teacher") != bool(self.reward.teacher):
            raise ConfigError(
                f"reward.kind={self.reward.kind!r} with reward.teacher={self.reward.teacher!r}: set both, or neither"
            )
        if self.policy.ratio_cap and self.rollout.temperature != 1:
            raise ConfigError(
                f"policy.ratio_cap={self.policy.ratio_cap:g} with rollout.temperature={self.rollout.temperature:g}: "
                "what drew tells log-probabilities at temperature 1 only; set one of them to 0 or 1"
            )
        if self.policy.ratio_cap and self.policy.ratio_cap < 1:
            raise ConfigError(
                f"policy.ratio_cap={self.policy.ratio_cap:g} would weigh every token down: set 2, or 0 for no weights"
            )


SETTINGS = Settings(Recipe, "nanochat rl")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps from `first` to before `end` that have the same settings, those of a recipe without phases.

    `number` counts from 0. `fire` is what happens to the matrices before the first of them, if anything does.
    """

    number: int
    first: int
    end: int
    fire: Fire | None
    recipe: Recipe


def stages(recipe: Recipe) -> tuple[Stage, ...]:
    """The phases of a recipe, of which one without phases has one.

    Raises
    ------
    ConfigError
        If a phase has settings that cannot be.
    """
    plain = dataclasses.replace(recipe, phases=())
    found: list[Stage] = []
    first = 0
    for phase in recipe.phases or [None]:
        steps = recipe.steps if phase is None else phase.steps
        try:
            settings = plain if phase is None else _changed(plain, phase.changes)
        except ConfigError as error:
            raise ConfigError(f"phase {len(found) + 1}: {error}") from error
        fire = None if phase is None else phase.fire
        found.append(
            Stage(number=len(found), first=first, end=first + steps, fire=fire, recipe=settings)
        )
        first += steps
    return tuple(found)


def recipe_to_dict(recipe: Recipe) -> dict[str, object]:
    """All settings in their groups, ready for JSON."""
    phases = [
        {
            "steps": phase.steps,
            **({"fire": dataclasses.asdict(phase.fire)} if phase.fire else {}),
            **phase.changes,
        }
        for phase in recipe.phases
    ]
    return {**dataclasses.asdict(recipe), "phases": phases}


def recipe_from_dict(fields: Mapping[str, object]) -> Recipe:
    """Rebuild a recipe from `recipe_to_dict`; what is absent has its default, and phases add up to the steps.

    Raises
    ------
    ConfigError
        If a setting is unknown, absent without a default, or of a value that it may not have.
    """
    found = dict(fields)
    found["optimizer"] = merged(dataclasses.asdict(_optimizer()), found.get("optimizer", {}))
    if phases := found.get("phases"):
        found["phases"] = phases = _phases(phases)
        lengths = [each["steps"] for each in phases]
        if all(type(each) is int for each in lengths):
            found.setdefault("steps", sum(lengths))
    try:
        return Recipe(**cast("dict[str, Any]", found))
    except ValidationError as error:
        raise refusal(error, Recipe) from error


def _phases(found: object) -> list[dict[str, Any]]:
    if not isinstance(found, list | tuple) or not all(isinstance(each, Mapping) for each in found):
        raise ConfigError(f"phases={found!r:.80}: write a list of groups of settings")
    own = ("steps", "fire")
    return [
        {
            "steps": each.get("steps", 0),
            "fire": each.get("fire"),
            "changes": {name: value for name, value in each.items() if name not in own},
        }
        for each in found
    ]


def _changed(recipe: Recipe, changes: Mapping[Group, Mapping[str, Any]]) -> Recipe:
    fields = recipe_to_dict(recipe)
    for group, values in changes.items():
        fields[group] = merged(fields[group], values)
    return recipe_from_dict(fields)
