"""This file holds the drawing of curves as an SVG file: panels side by side, each with its own axes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

__all__ = ["Curve", "draw_curves"]

_WIDTH, _HEIGHT, _MARGIN = 300, 200, 56
_COLORS = ("#0969da", "#8c959f", "#bf8700", "#cf222e")
_MOST_POINTS = 300


@dataclass(frozen=True)
class Curve:
    """A name, and points of which x grows."""

    name: str
    points: Sequence[tuple[float, float]]


def draw_curves(panels: Mapping[str, Sequence[Curve]], path: Path, *, x_label: str) -> None:
    """Write one panel for each title; the y axis starts at zero where the data come near it."""
    parts = [
        part
        for i, (title, curves) in enumerate(panels.items())
        for part in _panel(title, curves, _MARGIN + i * (_WIDTH + _MARGIN), x_label)
    ]
    width = _MARGIN + len(panels) * (_WIDTH + _MARGIN)
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT + 2 * _MARGIN}">\n'
        "<style>text { font: 11px sans-serif; fill: #1f2328 }</style>\n"
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )


def _panel(title: str, curves: Sequence[Curve], left: int, x_label: str) -> list[str]:
    points = [point for curve in curves for point in curve.points]
    right = max(x for x, _ in points)
    ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    low, high = ticks[0], ticks[-1]
    bottom = _MARGIN + _HEIGHT

    def place(x: float, y: float) -> str:
        across = left + _WIDTH * x / right
        return f"{across:.1f},{bottom - _HEIGHT * (y - low) / (high - low):.1f}"

    parts = [_text(left, _MARGIN - 24, title)]
    for tick in ticks:
        begin, end = place(0, tick), place(right, tick)
        parts.append(f'<polyline points="{begin} {end}" stroke="#d0d7de" fill="none"/>')
        y = float(begin.split(",")[1])
        parts.append(_text(left - 6, y + 4, f"{tick:g}", anchor="end"))
    parts.append(_text(left, bottom + 16, "0"))
    parts.append(_text(left + _WIDTH, bottom + 16, f"{right:.2g} {x_label}", anchor="end"))
    for i, curve in enumerate(curves):
        color = _COLORS[i % len(_COLORS)]
        stride = max(1, len(curve.points) // _MOST_POINTS)
        line = " ".join(place(x, y) for x, y in curve.points[::stride])
        parts.append(f'<polyline points="{line}" stroke="{color}" stroke-width="2" fill="none"/>')
        parts.append(
            f'<text x="{left + _WIDTH}" y="{_MARGIN - 8 + 14 * i}" text-anchor="end" style="fill: {color}">'
            f"{escape(curve.name)}</text>"
        )
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around the data, about five."""
    if low > 0 and low < 0.5 * high:
        low = 0.0
    span = (high - low) or 1.0
    step = 10.0 ** math.floor(math.log10(span / 4))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
