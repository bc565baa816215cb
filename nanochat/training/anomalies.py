"""This file holds the rules by which a run finds trouble in the lines of its log, and says what to do.

They see nothing but lines. So a run that goes on, which gives them those of before, finds what it would have found.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import median
from typing import Any

__all__ = ["Anomalies"]

# Steps that a rule compares a step with, and those without trouble after which trouble is news.
_WINDOW = 50
# Steps after which trouble that lasts is told again.
_AGAIN = 100

# Of a normal distribution, the standard deviation in median absolute deviations.
_DEVIATION = 1.4826
# In the two runs of bench/results/training no loss is more than 4.1 deviations above the steps before.
_SPIKE_DEVIATIONS = 10
# Batches of a harder kind come again: a spike is so many times as far above the steps before as the highest of them.
_SPIKE_HEIGHTS = 2
# Nats: a loss that hardly varies any more has tiny deviations.
_SPIKE = 0.2
# Share of the largest entropy of a loop's exits.
_COLLAPSED = 0.05
# Distance of the streams from their mean over that mean; 0.44 and more in bench/results/training.
_EQUAL = 0.01
# Streams begin equal.
_STREAMS_FROM = 100
# Share of codes: 200 of 2 million may change for ever.
_FEW_FLIPS = 1e-4
# Share of the time of steps.
_WAITING = 0.05


class Anomalies:
    """What is wrong, as the lines of a log are given one after the other."""

    def __init__(self) -> None:
        self._past = _Past()
        self._quiet = {name: _Quiet() for name in _RULES}

    def see(self, step: int, values: Mapping[str, object]) -> list[dict[str, object]]:
        """What to add to the log after this line: of each anomaly its name, and why it is one and what to do."""
        self._past.note(step, values)
        found: list[dict[str, object]] = []
        for name, rule in _RULES.items():
            because = rule(self._past, step, values)
            if because is not None and self._quiet[name].is_news(step, bad=bool(because)):
                found.append({"anomaly": name, "because": because})
        return found


@dataclass
class _Quiet:
    """Whether trouble is news: it is told anew after steps without any, or after many with it."""

    told: int | None = None
    good_since: int | None = None

    def is_news(self, step: int, *, bad: bool) -> bool:
        if not bad:
            self.good_since = step if self.good_since is None else self.good_since
            return False
        since, self.good_since = self.good_since, None
        is_calm = since is not None and step - since >= _WINDOW
        if self.told is None or is_calm or step - self.told >= _AGAIN:
            self.told = step
            return True
        return False


@dataclass
class _Past:
    """What rules ask of the lines until now, of which losses and flips are those of one phase.

    `flips` are the learning rate factor and the share of codes that changed, of all evaluations; `times` are seconds
    that steps waited for their batch, and took.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    decay_steps: int = 0
    phase: int = 0
    tokens: float | None = None
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW + 1))
    times: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    flips: list[tuple[float, float]] = field(default_factory=list)

    def note(self, step: int, values: Mapping[str, Any]) -> None:
        if "recipe" in values:
            self.recipe = values["recipe"]
        # A run by time decides it where the rate begins to fall.
        self.decay_steps = values.get("decay_steps", self.decay_steps)
        if "loss" not in values:
            return
        # The last phase has no number of steps.
        ends = [*accumulate(each["steps"] for each in self.recipe.get("phases", ())[:-1])]
        phase = bisect_left(ends, step)
        if phase != self.phase:
            self.phase = phase
            self.losses.clear()
            self.flips.clear()
        self.losses.append(values["loss"])
        if "code_flips" in values:
            self.flips.append((values["learning_rate_factor"], values["code_flips"]))
        if "waiting_seconds" in values and self.tokens is not None:
            seconds = (values["tokens"] - self.tokens) / values["tokens_per_second"]
            self.times.append((values["waiting_seconds"], seconds))
        self.tokens = values.get("tokens")

    def setting(self, name: str, default: Any) -> Any:
        """A setting of the phase; the default where a recipe of before groups does not name it so."""
        phases = self.recipe.get("phases", ())
        for found in (*phases[self.phase : self.phase + 1], self.recipe):
            for part in name.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
            if found is not None:
                return found
        return default


# A rule gives nothing where its line does not say, no text where all is well, or why it is not.


def _spike(past: _Past, _: int, values: Mapping[str, Any]) -> str | None:
    if "loss" not in values or len(past.losses) <= _WINDOW:
        return None
    *before, loss = past.losses
    middle = median(before)
    deviation = _DEVIATION * median(abs(each - middle) for each in before)
    highest = max(before) - middle
    if loss - middle <= max(_SPIKE, _SPIKE_DEVIATIONS * deviation, _SPIKE_HEIGHTS * highest):
        return ""
    return (
        f"loss is {loss:.4g} after a median of {middle:.4g} over {_WINDOW} steps, which vary by {deviation:.2g}: if it "
        "stays up, branch off an earlier snapshot with --start and a lower rate, such as --set "
        f"optimizer.matrices.rate={past.setting('optimizer.matrices.rate', 0.02) / 2:.3g}"
    )


def _exit_collapse(past: _Past, _: int, values: Mapping[str, Any]) -> str | None:
    count = past.setting("model.loop_count", 1)
    # A gate that is trained alone shall be sure, and no entropy is minimised with it.
    if "exit_entropy" not in values or "exit_improvement" in values or count < 2:
        return None
    found, least = values["exit_entropy"], _COLLAPSED * math.log(count)
    if found >= least:
        return ""
    factor = past.setting("objective.exit_entropy", 0.05)
    return (
        f"exit_entropy is {found:.3g} nats, below {least:.3g} ({_COLLAPSED:.0%} of log {count}), so tokens no longer "
        "choose where they leave the loop: branch off an earlier snapshot with --start and --set "
        f"objective.exit_entropy={2 * factor or 0.05:.3g}"
    )


def _dead_streams(past: _Past, step: int, values: Mapping[str, Any]) -> str | None:
    divergence = values.get("stream_divergence")
    if not divergence or step < _STREAMS_FROM:
        return None
    least = min(divergence)
    if least >= _EQUAL:
        return ""
    return (
        f"stream_divergence is {least:.2g} at site {divergence.index(least)}, below {_EQUAL}, so the streams are equal "
        "and mHC does nothing: let it learn faster with --set optimizer.streams.rate="
        f"{2 * past.setting('optimizer.streams.rate', 0.01):.3g}, or save its time with --set model.num_streams=1"
    )


def _restless_codes(past: _Past, _: int, values: Mapping[str, Any]) -> str | None:
    # Updates shrink with the learning rate, and so do the latents that cross a threshold: in a run of `nanochat train`
    # 1.0 % of the codes changed in a step at factor 1, 0.5 % at 0.54, 0.17 % at 0.14 and 0.01 % at 0.007. Codes that
    # swing between two values do not come to rest like that, and what is written in the end is their state by chance
    # (M. Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", 2022, section 3. arXiv:2203.11086).
    # The root lies midway, on a scale of powers, between flips that fall as the factor does and flips that do not; at a
    # half, 0.71 is far from both, and no one evaluation decides by its noise.
    if "code_flips" not in values:
        return None
    factor, flips = past.flips[-1]
    peak, most = max(reversed(past.flips), key=lambda each: each[0])
    if factor > peak / 2:
        return None
    if flips <= max(_FEW_FLIPS, most * math.sqrt(factor / peak)):
        return ""
    flat = past.recipe.get("decay_steps", 0)
    decay = past.decay_steps or past.setting("schedule.decay_steps", flat)
    rate = past.setting("optimizer.matrices.rate", 0.02)
    return (
        f"{flips:.2%} of the codes change in a step at a learning rate factor of {factor:.2g}, and {most:.2%} did at "
        f"{peak:.2g}: they do not come to rest: decay for longer, such as --set schedule.decay_steps={2 * decay}, or "
        f"from a lower rate, such as --set optimizer.matrices.rate={rate / 2:.3g}"
    )


def _starving_loader(past: _Past, _: int, values: Mapping[str, Any]) -> str | None:
    if "waiting_seconds" not in values or len(past.times) < _WINDOW:
        return None
    waited, seconds = (sum(each) for each in zip(*past.times, strict=True))
    if waited <= _WAITING * seconds:
        return ""
    return (
        f"{waited / seconds:.0%} of the last {_WINDOW} steps was waiting for batches, more than {_WAITING:.0%}: copy "
        "the prepared data to a faster disk and pass it as --data, or leave a core free with a lower --threads"
    )


_RULES: dict[str, Callable[[_Past, int, Mapping[str, Any]], str | None]] = {
    "spike": _spike,
    "exit collapse": _exit_collapse,
    "dead streams": _dead_streams,
    "restless codes": _restless_codes,
    "starving loader": _starving_loader,
}
