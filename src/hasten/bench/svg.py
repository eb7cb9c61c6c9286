"""Two drawings for the report: speed against quality, and the steps of a run. Plain SVG, coloured by the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from hasten.bench.schema import Step
from hasten.bench.statistics import pareto

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 18, 50


class Point(NamedTuple):
    """One variant: how fast, how good, what it is called, and its class in the page's CSS."""

    x: float
    y: float
    label: str
    mark: str
    low: float | None = None
    high: float | None = None


def scatter(points: Sequence[Point], x_title: str, y_title: str) -> str:
    """Points with their names, the interval of x as a whisker, and the Pareto line through the unbeaten ones."""
    if not points:
        return ""
    x_ticks, y_ticks = ticks([point.x for point in points]), ticks([point.y for point in points])

    def across(x: float) -> float:
        share = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return LEFT + min(max(share, 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_title)} against '
        f'{escape(x_title)}">'
    ]
    for x in x_ticks:
        parts.append(
            f'<line class="grid" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
        parts.append(_text(across(x), HEIGHT - BOTTOM + 18, f"{x:g}", "middle"))
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down(y):.1f}" y2="{down(y):.1f}"/>')
        parts.append(_text(LEFT - 8, down(y) + 4, f"{y:g}", "end"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_title, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<g transform="rotate(-90 16 {middle})">{_text(16, middle, y_title, "middle")}</g>')
    best = pareto([(point.x, point.y) for point in points])
    line = " ".join(f"{across(points[i].x):.1f},{down(points[i].y):.1f}" for i in best)
    if len(best) > 1:
        parts.append(f'<polyline class="pareto" points="{line}"/>')
    heights: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: point.y):
        x, y = across(point.x), down(point.y)
        shown = f"{point.label}: {point.x:.2f}×, {point.y:.2f}"
        parts.append(f'<g class="{escape(point.mark)}"><title>{escape(shown)}</title>')
        if point.low is not None and point.high is not None:
            parts.append(
                f'<line x1="{across(point.low):.1f}" x2="{across(point.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
        # A name stands right of its point, or left where the right edge is near; a step up where another stands.
        to_left = x + 10 + 6.4 * len(point.label) > WIDTH - RIGHT
        height = y - 8
        while any(abs(height - other) < 13 and abs(x - place) < 150 for place, other in heights):
            height -= 13
        heights.append((x, height))
        parts.append(_text(x - 8 if to_left else x + 8, height, point.label, "end" if to_left else "start") + "</g>")
    return "".join([*parts, "</svg>"])


def timeline(steps: Sequence[Step]) -> str:
    """A cell for each step, filled where it was computed; its reason and time are shown on hovering."""
    if not steps:
        return ""
    width = min(16.0, WIDTH / len(steps))
    cells = [
        f'<rect class="{"computed" if step.computed else "skipped"}" x="{index * width:.2f}" y="0" '
        f'width="{max(width - 1, 0.5):.2f}" height="16"><title>'
        + escape(f"step {step.index}: {step.reason}, {1000 * step.seconds:.1f} ms")
        + "</title></rect>"
        for index, step in enumerate(steps)
    ]
    computed = sum(step.computed for step in steps)
    label = f"{computed} of {len(steps)} steps computed"
    total = len(steps) * width
    return (
        f'<svg class="steps" viewBox="0 0 {total:.2f} 16" width="{total:.0f}" height="16" role="img" '
        f'aria-label="{label}">{"".join(cells)}</svg>'
    )


def ticks(values: Sequence[float], wanted: int = 6) -> list[float]:
    """Round numbers that span all values, at least two."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5 * max(1.0, abs(low)), high + 0.5 * max(1.0, abs(high))
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, max(last, first + 1) + 1)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
