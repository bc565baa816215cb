"""This file holds the roles of parameters, which have an update rule each, and those rules' settings."""

from collections.abc import Iterable
from dataclasses import field
from typing import Literal, get_args

from pydantic.dataclasses import dataclass

from nanochat.errors import ConfigError
from nanochat.training.rules.adamw import AdamW
from nanochat.training.rules.low_rank import Projected
from nanochat.training.rules.muon import Muon
from nanochat.training.rules.rule import Rule
from nanochat.training.values import CHECKED, Positive
from nanochat.weights import Spec

__all__ = [
    "ROLES",
    "OptimizerSettings",
    "Role",
    "require_roles",
    "role_of",
    "rule_of",
    "trained_rule",
]

Role = Literal[
    "matrices",
    "embedding",
    "head",
    "norms",
    "streams",
    "projections",
    "gates",
    "exits",
    "router",
    "convolutions",
]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class OptimizerSettings:
    """How parameters are updated, by their role.

    Parameters
    ----------
    clip : float
        Largest norm of all gradients together.
    only : list of str
        Roles that are trained, such as ["exits"] for a LoopLM's gate; all, if none is named.
    matrices : rule
        Ternary linears.
    embedding, head : rule
        The two tables; a tied head is the embedding.
    norms : rule
        Gains of the norms.
    streams, projections : rule
        Of mHC: logits and gates of each site, and the matrices that make them depend on the token.
    gates, convolutions : rule
        Of Gated DeltaNet: what it learns and keeps, and the filters of a few tokens.
    exits : rule
        A LoopLM's gate, which ends the loop.
    router : rule
        Chooses a token's experts.
    """

    clip: Positive = 1.0
    only: tuple[Role, ...] = ()
    matrices: Rule = field(default_factory=Muon)
    embedding: Rule = field(default_factory=lambda: AdamW(rate=0.004))
    head: Rule = field(default_factory=lambda: AdamW(rate=0.004))
    norms: Rule = field(default_factory=AdamW)
    streams: Rule = field(default_factory=AdamW)
    projections: Rule = field(default_factory=AdamW)
    gates: Rule = field(default_factory=AdamW)
    exits: Rule = field(default_factory=AdamW)
    router: Rule = field(default_factory=AdamW)
    convolutions: Rule = field(default_factory=AdamW)


def rule_of(settings: OptimizerSettings, role: Role) -> Rule:
    """The update rule of a role's parameters."""
    rule: Rule = getattr(settings, role)
    return rule


def trained_rule(settings: OptimizerSettings, name: str, spec: Spec) -> Rule | None:
    """The update rule of a parameter, if it is trained."""
    role = role_of(name, spec)
    return rule_of(settings, role) if not settings.only or role in settings.only else None


def require_roles(settings: OptimizerSettings, specs: Iterable[tuple[str, Spec]]) -> None:
    """Refuse what the parameters of a model, named in its weights tree, cannot be trained by.

    Raises
    ------
    ConfigError
        If a role that is named alone has no parameters, or the rule of one needs other matrices than it has.
    """
    found: dict[Role, list[Spec]] = {}
    for name, spec in specs:
        found.setdefault(role_of(name, spec), []).append(spec)
    for role in settings.only:
        if role not in found:
            raise ConfigError(
                f"optimizer.only={[*settings.only]}: the model has no {role}: choose among {', '.join(found)}"
            )
    for role, members in found.items():
        rule = rule_of(settings, role)
        # Several vectors lie in a stack, which would be one matrix.
        smallest = min(min(s.shape[-2:]) if len(s.shape) > 1 else 0 for s in members)
        if isinstance(rule, Muon) and not smallest:
            raise ConfigError(
                f"optimizer.{role}.rule=muon: the model's {role} are no matrices: choose adamw or lion"
            )
        if isinstance(rule, Projected) and rule.rank and rule.rank >= smallest:
            least = (
                f"of which there are as few as {smallest}: set optimizer.{role}.rank=0, or less than that"
                if smallest
                else f"which are no matrices: set optimizer.{role}.rank=0"
            )
            raise ConfigError(
                f"optimizer.{role}.rank={rule.rank}: must be less than all rows and columns of the model's {role}, "
                f"{least}"
            )


def role_of(name: str, spec: Spec) -> Role:
    """The role of a parameter of that name in the weights tree.

    Examples
    --------
    >>> from nanochat.presets import preset
    >>> from nanochat.shapes import shapes
    >>> from nanochat.weights import named_leaves
    >>> specs = dict(named_leaves(shapes(preset("tiny"))))
    >>> name = "layers.0.mixer_site.mhc.read"
    >>> role_of(name, specs[name]), role_of("embedding", specs["embedding"])
    ('streams', 'embedding')
    """
    last = name.rpartition(".")[2]
    if spec.initial == "embedding":
        return "embedding"
    if spec.initial == "head":
        return "head"
    if spec.kind == "ternary":
        return "matrices"
    if ".mhc." in name:
        return "projections" if last == "projection" else "streams"
    if name.startswith("exit."):
        return "exits"
    if last == "router":
        return "router"
    if spec.initial == "conv":
        return "convolutions"
    return "norms" if spec.initial == "ones" else "gates"
