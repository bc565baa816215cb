"""This file holds the drawing of results as an SVG file, written by hand: dots on a logarithmic axis for each unit."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.result import Result

__all__ = ["draw"]

_LABEL, _WIDTH, _ROW, _MARGIN = 420, 420, 18, 24
_OURS, _PEER, _LINE, _MISSED = "#0969da", "#8c959f", "#d0d7de", "#cf222e"


def draw(results: Sequence[Result], path: Path) -> None:
    """Write one panel for each unit: ours a dot, the peer a ring, bound and target strokes.

    A number of 0, which a logarithm cannot place, stands at the left edge.
    """
    units = list(dict.fromkeys(result.unit for result in results))
    parts: list[str] = []
    top = _MARGIN
    for unit in units:
        panel = [result for result in results if result.unit == unit]
        parts += _panel(unit, panel, top)
        top += _ROW * (len(panel) + 2) + _MARGIN
    size = f'width="{_LABEL + _WIDTH + 2 * _MARGIN}" height="{top}"'
    style = "text { font: 11px sans-serif; fill: #1f2328 }"
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{style}</style>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )


def _panel(unit: str, results: Sequence[Result], top: int) -> list[str]:
    low, high = _decades(results)

    def place(number: float) -> float:
        if not math.isfinite(number):
            return _LABEL + _WIDTH
        exponent = math.log10(number) if number > 0 else low
        return _LABEL + _WIDTH * (max(exponent, low) - low) / (high - low)

    bottom = top + _ROW * (len(results) + 1)
    parts = [_text(_LABEL, top, unit)]
    for exponent in range(low, high + 1):
        x = place(10.0**exponent)
        parts.append(_stroke(x, top + 6, bottom, _LINE))
        parts.append(_text(x, bottom + 12, f"{10.0**exponent:.0e}", anchor="middle"))
    for i, result in enumerate(results):
        y = top + _ROW * (i + 1)
        parts.append(_text(_LABEL - 8, y + 4, result.what, anchor="end"))
        parts += [
            _stroke(place(number), y - 6, y + 6, _PEER)
            for number in (result.bound, result.target)
            if number is not None
        ]
        if result.peer is not None:
            ring = f'fill="white" stroke="{_PEER}" stroke-width="2"'
            parts.append(f'<circle cx="{place(result.peer):.1f}" cy="{y}" r="4" {ring}/>')
        color = _OURS if result.ok else _MISSED
        parts.append(f'<circle cx="{place(result.ours):.1f}" cy="{y}" r="4" fill="{color}"/>')
    return parts


def _decades(results: Sequence[Result]) -> tuple[int, int]:
    """Powers of ten around all positive numbers."""
    numbers = [
        number
        for result in results
        for number in (result.ours, result.peer, result.bound, result.target)
        if number is not None and 0 < number < math.inf
    ]
    if not numbers:
        return 0, 1
    low = math.floor(math.log10(min(numbers)))
    return low, max(math.ceil(math.log10(max(numbers))), low + 1)


def _text(x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _stroke(x: float, top: float, bottom: float, color: str) -> str:
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" '
        f'stroke="{color}" stroke-width="2"/>'
    )
