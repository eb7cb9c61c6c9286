"""How close each way of skipping comes at the same number of computed steps: searched schedules against all others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from statistics import median
from typing import Any, NamedTuple

from benchmarks.calibrated import Bench, calibrated, calibration_jobs, held_out_jobs, opened, tracked
from hasten.errors import HastenError
from hasten.record import Quality
from hasten.schedule.solve import solve

STEPS = (50, 28, 20)
TRIES = 20
TRY_PROMPTS = 8
"""Of `hasten schedule --tries --try-prompts`."""
BUDGETS = {50: (8, 10, 12, 14, 16, 18, 20, 22, 25), 28: (7, 9, 12, 14), 20: (6, 8, 10)}
INTERVALS = tuple(range(2, 10))
THRESHOLDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7)
TOLERANCES = (0.003, 0.005, 0.007, 0.01, 0.014, 0.02, 0.03, 0.05, 0.08)
WARM_UPS = (1, 3)


class Point(NamedTuple):
    """One setting of one method: what it computed, and how close it came, over all jobs."""

    name: str
    computed: float
    error: float
    psnr: float


def table(model: str, prompts: int) -> str:
    """Of every method the best of its settings that computes no more than the budget; medians over held-out prompts."""
    session = opened(model)
    measured = calibrated(session)
    bench = Bench(session, held_out_jobs(prompts))
    return "\n\n".join(_table(bench, measured, steps) for steps in STEPS)


def _table(bench: Bench, measured: Any, steps: int) -> str:
    budgets = BUDGETS[steps]
    points: list[Point] = []
    say = lambda what: print(what, file=sys.stderr)  # noqa: E731
    for point in solve(bench.session, measured, steps, budgets, calibration_jobs()[:TRY_PROMPTS], TRIES, progress=say):
        points += measured_at(bench, "`hasten schedule`", point.section, steps)
    for name, cache in tracked(list(settings()), f"{steps} steps"):
        try:
            points += measured_at(bench, name, cache, steps)
        except HastenError as error:
            print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
    for budget in budgets:
        points += measured_at(bench, "fewer steps", None, budget, of=steps)
    names = dict.fromkeys(point.name for point in points)
    head = f"| {steps} steps, computed at most | {' | '.join(map(str, budgets))} |"
    lines = [head, f"|---|{'--:|' * len(budgets)}"]
    best = {budget: min(point.error for point in points if point.computed <= budget) for budget in budgets}
    for name in names:
        cells = []
        for budget in budgets:
            able = [point for point in points if point.name == name and point.computed <= budget]
            if not able:
                cells.append("–")
                continue
            point = min(able, key=lambda one: one.error)
            cell = f"{point.psnr:.1f} dB, {point.error:.2%}"
            cells.append(f"**{cell}**" if point.error == best[budget] else cell)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + (
        f"\n\nMedian PSNR and median relative error of the final latent, {len(bench.jobs)} held-out prompts and seeds."
    )


def settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method at many settings."""
    for warm_up in WARM_UPS:
        for interval in INTERVALS:
            for method in ("taylorseer", "reuse", "hicache", "foca", "ab-cache", "freqca"):
                yield method, {"method": method, "interval": interval, "first_enhance": warm_up, "site": "output"}
    for window in (2, 3, 4):
        for growth in (0.25, 0.5, 0.75, 1.0, 1.5):
            yield "spectrum", {"method": "spectrum", "window": window, "growth": growth}
    for threshold in THRESHOLDS:
        yield "fbcache", {"method": "fbcache", "threshold": threshold}
        yield "easycache", {"method": "easycache", "threshold": threshold, "first_enhance": 3}
    for tolerance in TOLERANCES:
        yield "`tolerance`", {"method": "tolerance", "tolerance": tolerance}


def measured_at(
    bench: Bench, name: str, cache: dict[str, Any] | None, steps: int, of: int | None = None
) -> list[Point]:
    """One point, as a list."""
    results: list[tuple[int, Quality]] = bench.each(cache, steps, of)
    return [
        Point(
            name,
            median(computed for computed, _ in results),
            median(quality.latent_relative_l2 or 0.0 for _, quality in results),
            median(100.0 if quality.psnr is None else quality.psnr for _, quality in results),
        )
    ]
