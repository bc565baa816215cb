"""This file holds the settings of the loss: the factors of its terms."""

from pydantic.dataclasses import dataclass

from nanochat.training.values import CHECKED, NotNegative, Part, Share

__all__ = ["Objective", "Reference"]


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
    keep_tokens : float
        Share of a sequence's tokens that it is trained on: those of the highest loss, or of the highest excess over
        that of `reference.model`. 1 is all.
    exit_entropy : float
        Of the entropy of a LoopLM's exit distribution, which is maximised.
    ahead : float
        Of the mean cross-entropy of the extra heads.
    balance, router_z : float
        Of the load-balance term and of the squared log partition of the routers.
    """

    label_smoothing: Share = 0.0
    z_loss: NotNegative = 0.0
    entropy: NotNegative = 0.0
    keep_tokens: Part = 1.0
    exit_entropy: NotNegative = 0.05
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
