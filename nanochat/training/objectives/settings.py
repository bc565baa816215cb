"""This file holds the settings of the loss: the factors of its terms."""

from typing import Literal

from pydantic.dataclasses import dataclass

from nanochat.training.values import CHECKED, NotNegative, Part, Positive, Share, Whole

__all__ = ["Objective", "Reference", "Teacher"]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Objective:
    """Factors of the terms that stand beside the cross-entropy.

    Parameters
    ----------
    label_smoothing : float
        Share of each target's probability that is spread over the whole vocabulary.
    z_loss : float
        Of the squared log partition of the predicted distributions, which keeps logits small.
    entropy : float
        Of the entropy of the predicted distributions, which is maximised.
    later_tokens : list of float
        Of the cross-entropies of the tokens after the next one, which the same logits predict, too: [0.5, 0.25] counts
        the two after it. Let phases take them away one by one.
    keep_tokens : float
        Share of a sequence's tokens that it is trained on: those of the highest loss, or of the highest excess over
        that of `reference.model`. 1 is all.
    drop_attention_gradients : bool
        Whether tokens that are not kept have no gradient in any layer, which is not the gradient of the loss. They are
        chosen in a pass of their own, without gradients: a quarter more time.
    distillation : float
        Of the divergence from the distributions of `teacher`, times the square of the temperature.
    temperature : float
        What the logits of both are divided by for that.
    exits : {"expected", "improvement"}
        What trains a LoopLM's gate: the expected cross-entropy over its exits, with all else; or, in a phase of its own
        with optimizer.only=["exits"], whether the next step makes a token cheaper, and nothing else.
    exit_entropy : float
        Of the entropy of a LoopLM's exit distribution, which is maximised.
    exit_slope, exit_margin : float
        For *improvement*: the probability of going on is to be the sigmoid of the slope times the nats that the next
        step gains less the margin.
    ahead : float
        Of the mean cross-entropy of the extra heads.
    balance, router_z : float
        Of the load-balance term and of the squared log partition of the routers.
    """

    label_smoothing: Share = 0.0
    z_loss: NotNegative = 0.0
    entropy: NotNegative = 0.0
    later_tokens: tuple[NotNegative, ...] = ()
    keep_tokens: Part = 1.0
    drop_attention_gradients: bool = False
    distillation: NotNegative = 0.0
    temperature: Positive = 1.0
    exits: Literal["expected", "improvement"] = "expected"
    exit_entropy: NotNegative = 0.05
    exit_slope: Positive = 50.0
    exit_margin: NotNegative = 0.005
    ahead: NotNegative = 0.3
    balance: NotNegative = 0.01
    router_z: NotNegative = 0.001


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Reference:
    """The model over whose loss the excess is counted by which tokens are kept.

    Parameters
    ----------
    model : str
        Its directory, or its name in the catalog or on the Hub; without one, tokens are kept by their loss alone.
    """

    model: str = ""


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class Teacher:
    """The model whose distributions are learnt where `objective.distillation` has a factor: one of three.

    Parameters
    ----------
    model : str
        Its directory, or its name in the catalog or on the Hub.
    phase : int
        The phase of this run, counted from 1, whose last model it is.
    logits : str
        A directory of a teacher's logits for all batches, from `nanochat.training.stored_logits.store_logits`.
    """

    model: str = ""
    phase: Whole = 0
    logits: str = ""
