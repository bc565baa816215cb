"""This file holds the drawing of results as an SVG file: a pair of bars for each, with its numbers beside them."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from bench.result import Result, as_text

__all__ = ["draw"]

_LABEL, _BARS, _NUMBERS, _MARGIN = 330, 260, 60, 16
_BAR, _PAIR, _TITLE = 9, 28, 30
_OURS, _PEER, _BOUND, _TEXT = "#0969da", "#afb8c1", "#cf222e", "#1f2328"


def draw(results: Sequence[Result], path: Path) -> None:
    """Write a pair of bars for each result, as long as the larger number is wide.

    Results of different units and sizes stand side by side: what a pair shows is a ratio.
    """
    groups = [(unit, list(group)) for unit, group in groupby(results, lambda result: result.unit)]
    parts, y = list(_legend(results)), 2.0 * _TITLE
    for unit, group in groups:
        parts.append(_write(_MARGIN, y, unit, weight="bold"))
        y += _TITLE / 2
        for result in group:
            parts += _pair(result, y)
            y += _PAIR
        y += _TITLE / 2
    size = f'width="{_LABEL + _BARS + _NUMBERS + 2 * _MARGIN}" height="{y:.0f}"'
    style = f"text {{ font: 12px sans-serif; fill: {_TEXT} }}"
    body = "\n".join(parts)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{style}</style>\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n',
        encoding="utf-8",
    )


def _legend(results: Sequence[Result]) -> Iterator[str]:
    """What the colours mean."""
    peers = list(dict.fromkeys(result.peer_name for result in results if result.peer_name))
    named = [("nanochat-ternary", _OURS), (" or ".join(peers), _PEER)]
    if any(result.bound is not None for result in results):
        named.append(("what the memory's bandwidth allows", _BOUND))
    x = float(_MARGIN)
    for name, color in named:
        if name:
            yield _rectangle(x, _MARGIN, 12, 12, color)
            yield _write(x + 18, _MARGIN + 11, name)
            x += 40 + 7 * len(name)


def _pair(result: Result, y: float) -> Iterator[str]:
    numbers = [("ours", result.ours, _OURS)]
    if result.peer is not None:
        numbers.append((result.peer_name or "", result.peer, _PEER))
    allowed = [result.bound] if result.bound is not None else []
    largest = max([abs(number) for _, number, _ in numbers if math.isfinite(number)] + allowed)
    yield _write(_LABEL, y + _BAR + 4, result.what, anchor="end")
    for i, (_, number, color) in enumerate(numbers):
        share = abs(number) / largest if largest > 0 and math.isfinite(number) else 0.0
        top = y + i * (_BAR + 2)
        yield _rectangle(_LABEL + 10, top, max(1.0, _BARS * share), _BAR, color)
        yield _write(_LABEL + 16 + _BARS * share, top + _BAR, as_text(number))
    if result.bound is not None:
        yield _rectangle(
            _LABEL + 10 + _BARS * result.bound / largest, y - 2, 2, 2 * _BAR + 6, _BOUND
        )


def _write(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="font-weight: {weight}">'
        f"{escape(text)}</text>"
    )


def _rectangle(x: float, y: float, width: float, height: float, color: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{color}"/>'
    )
