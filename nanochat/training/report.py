"""This file holds the report on training runs: a table of them, and a page that compares them and needs no network."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray

from nanochat import __version__
from nanochat.config import config_from_dict
from nanochat.errors import ConfigError
from nanochat.shapes import num_parameters
from nanochat.training.flat_recipe import nested
from nanochat.training.history import History, Series
from nanochat.training.run_log import HELD_OUT

__all__ = ["comparison", "html", "summaries"]

_FOLDER = Path(__file__).parent / "report_page"
_STYLES = ("page.css", "charts.css")
# Each uses what those before it define.
_SCRIPTS = (
    "elements.js",
    "numbers.js",
    "tables.js",
    "axes.js",
    "chart.js",
    "view.js",
    "page.js",
)
_AXIS = "tokens"
# Keys of the log, as patterns, in the order of their charts; all others come after them.
_GROUPS: Mapping[str, Sequence[str]] = {
    "Loss": (
        HELD_OUT,
        f"{HELD_OUT}_*",
        "held_out_nats_per_token",
        "held_out_perplexity",
        "held_out_accuracy",
        "loss",
        "objective",
        "kept_loss",
        "expected_cross_entropy",
        "label_smoothing",
        "z_loss",
        "entropy",
        "exit_entropy",
        "exit_improvement",
        "distillation",
        "later_tokens",
        "ahead",
        "balance",
        "router_z",
    ),
    "Reinforcement": (
        "held_out_passes",
        "reward",
        "signal",
        "passes",
        "runs",
        "compiles",
        "trivial",
        "greedy_passes",
        "greedy_distinct",
        "rollout_*",
        "distinct_rewarded",
        "verdicts",
        "kl",
        "teacher_kl",
        "rehearsal_kl",
        "length",
        "truncated",
        "mismatch",
        "clipped",
        "flips",
        "flips_since_start",
    ),
    "Optimizer": ("learning_rate_factor", "gradient_norm", "gradient_norm_*"),
    "Codes and streams": ("zero_fraction", "code_flips", "stream_divergence", "composite_gain"),
    "Speed": ("tokens_per_second", "utilisation", "waiting_seconds"),
}
_OTHER = "Other"
# Of one line, and of all lines together of a key that has a list.
_MOST_POINTS, _MOST_OF_LIST = 1000, 4000
_FEWEST_POINTS = 20
# Of one run.
_MOST_EVENTS = 200
_DIGITS = 6


def summaries(histories: Sequence[History]) -> list[dict[str, object]]:
    """What each run is and has reached; `None` where its log does not tell.

    ``tokens_per_second`` is a median, and ``seconds_in_steps`` is without evaluations and snapshots.
    """
    return [
        _summary(name, history) for name, history in zip(_names(histories), histories, strict=True)
    ]


def comparison(histories: Sequence[History]) -> dict[str, object]:
    """Everything that the page shows, ready for JSON.

    * *runs*: their summaries, with the points of their series, events, and the last sample of text.
    * *charts*: titles of groups, each with the keys of its charts.
    * *settings*: names, as ``--set`` takes them, each with a text for each run; `None` where it has none.
    """
    runs = [
        summary | _details(history)
        for summary, history in zip(summaries(histories), histories, strict=True)
    ]
    return {"runs": runs, "charts": _charts(histories), "settings": _settings(histories)}


def html(histories: Sequence[History], *, made: str) -> str:
    """The page, as one text.

    Parameters
    ----------
    made : str
        When, in words.
    """
    data = comparison(histories) | {"made": f"nanochat {__version__}, {made}"}
    script, style = _joined(_SCRIPTS), _joined(_STYLES)
    # Nothing in it can end the element that holds it.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = Template((_FOLDER / "page.html").read_text(encoding="utf-8"))
    return page.substitute(
        data=text, script=script, style=style, policy=_policy(script=script, style=style)
    )


def _joined(names: Sequence[str]) -> str:
    return "\n".join((_FOLDER / name).read_text(encoding="utf-8") for name in names)


def _policy(*, script: str, style: str) -> str:
    """Only this script and this style, and no other host, whatever a log holds."""

    def known(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return f"default-src 'none'; script-src {known(script)}; style-src {known(style)}"


def _names(histories: Sequence[History]) -> list[str]:
    """The runs' directories, each with as much of its path as tells it from the others."""
    places = [
        history.path.resolve().parent
        if history.path.name == "log.jsonl"
        else history.path.resolve().with_suffix("")
        for history in histories
    ]
    return [_shortest(place, [other for other in places if other != place]) for place in places]


def _shortest(place: Path, others: Sequence[Path]) -> str:
    """The end of a path that no other one has."""
    parts = place.parts
    ends = (parts[-length:] for length in range(1, len(parts)))
    distinct = (end for end in ends if all(o.parts[-len(end) :] != end for o in others))
    return "/".join(next(distinct, parts))


def _summary(name: str, history: History) -> dict[str, object]:
    bits, best = _scalar(history, HELD_OUT), -1
    if bits is not None:
        best = int(bits.values.argmin())
    speed = _scalar(history, "tokens_per_second")
    ends = [int(each.steps[-1]) for places in history.series.values() for each in places.values()]
    tokens = _last(_scalar(history, _AXIS))
    return {
        "name": name,
        "log": str(history.path),
        "parameters": _parameters(history.recipe),
        "step": max(ends, default=None),
        "steps": history.recipe.get("steps"),
        "tokens": None if tokens is None else int(tokens),
        HELD_OUT: _last(bits),
        "best": None if bits is None else float(bits.values[best]),
        "best_step": None if bits is None else int(bits.steps[best]),
        "loss": _last(_scalar(history, "loss")),
        "tokens_per_second": None if speed is None else float(np.median(speed.values)),
        "seconds_in_steps": _seconds(_scalar(history, _AXIS), speed),
        "num_events": len(history.events),
        "num_unreadable_lines": history.num_unreadable,
        "machine": dict(history.machine),
    }


def _scalar(history: History, name: str) -> Series | None:
    return history.series.get(name, {}).get("")


def _last(series: Series | None) -> float | None:
    return None if series is None else float(series.values[-1])


def _parameters(recipe: Mapping[str, object]) -> int | None:
    model = recipe.get("model")
    try:
        return num_parameters(config_from_dict(model)) if isinstance(model, Mapping) else None
    except (ConfigError, TypeError):
        # Of another version than this one.
        return None


def _seconds(tokens: Series | None, speed: Series | None) -> float | None:
    if tokens is None or speed is None or not np.array_equal(tokens.steps, speed.steps):
        return None
    # A run that began from another one's snapshot has read none of the tokens before.
    first = tokens.values[0] if tokens.steps[0] == 1 else np.diff(tokens.values[:2]).sum()
    positive = speed.values > 0
    read = np.diff(tokens.values, prepend=tokens.values[0] - first)
    return float((read[positive] / speed.values[positive]).sum())


def _details(history: History) -> dict[str, object]:
    """What the page shows of a run besides its summary."""
    tokens = _scalar(history, _AXIS)
    return {
        "tokens_at": None if tokens is None else _corners(tokens),
        "series": {
            name: {place: _points(series, _share(len(places))) for place, series in places.items()}
            for name, places in history.series.items()
            if name != _AXIS
        },
        "events": [[e.step, e.kind, e.text] for e in history.events[:_MOST_EVENTS]],
        "sample": history.sample,
    }


def _share(num_lines: int) -> int:
    """How many points each of that many lines may have."""
    return min(_MOST_POINTS, max(_FEWEST_POINTS, _MOST_OF_LIST // num_lines))


def _corners(series: Series) -> list[list[float]]:
    """Steps and values between which a series is straight."""
    slopes = np.diff(series.values) / np.diff(series.steps)
    is_corner = np.concatenate([[True], np.diff(slopes) != 0, [True]])[-len(series.steps) :]
    at = np.flatnonzero(is_corner)
    if len(at) > _MOST_POINTS:
        at = at[np.linspace(0, len(at) - 1, _MOST_POINTS).astype(int)]
    return [series.steps[at].tolist(), series.values[at].tolist()]


def _points(series: Series, most: int) -> dict[str, list[float]]:
    """The least and the largest value of each part of a series that has too many, and then each part's mean, too."""
    steps, values = series.steps, series.values
    if len(steps) <= most:
        return {"x": steps.tolist(), "y": _rounded(values)}
    edges = np.linspace(0, len(steps), most // 2 + 1).astype(int)
    kept = {0, len(steps) - 1}
    for begin, end in pairwise(edges):
        part = values[begin:end]
        kept |= {begin + int(part.argmin()), begin + int(part.argmax())}
    at = sorted(kept)
    lengths = np.diff(edges)
    return {
        "x": steps[at].tolist(),
        "y": _rounded(values[at]),
        "mean_x": np.round(np.add.reduceat(steps, edges[:-1]) / lengths).tolist(),
        "mean_y": _rounded(np.add.reduceat(values, edges[:-1]) / lengths),
    }


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]


def _charts(histories: Sequence[History]) -> list[list[object]]:
    """Titles of groups, each with the keys of its charts."""
    keys = dict.fromkeys(key for history in histories for key in history.series if key != _AXIS)
    charts: list[list[object]] = []
    for title, patterns in _GROUPS.items():
        found = dict.fromkeys(
            key for pattern in patterns for key in keys if fnmatchcase(key, pattern)
        )
        if found:
            charts.append([title, list(found)])
        keys = {key: None for key in keys if key not in found}
    return [*charts, [_OTHER, sorted(keys)]] if keys else charts


def _settings(histories: Sequence[History]) -> list[list[object]]:
    """Names of all settings and facts of machines, each with what the runs have, in words."""
    columns = [
        dict(_flat("", _grouped(history.recipe))) | dict(_flat("machine.", history.machine))
        for history in histories
    ]
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, [column.get(name) for column in columns]] for name in names]


def _grouped(recipe: Mapping[str, object]) -> Mapping[str, object]:
    try:
        return nested(recipe)
    except (ConfigError, AttributeError, TypeError, KeyError):
        # Whatever it is, it is shown as it stands.
        return recipe


def _flat(prefix: str, group: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)
