"""Whether the Gram matrix knows which schedule is the better one: its ranking of random masks against real runs."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean, median

import numpy as np

from benchmarks.calibrated import CALIBRATED_ON, Bench, calibrated, held_out_jobs, opened, tracked
from hasten.caching.masks import geometric
from hasten.schedule.problem import Forecast, Mask
from hasten.schedule.solve import problem_of

STEPS = 50
MASKS = 60
BUDGETS = (8, 25)
FORECASTS = (Forecast(0), Forecast(1), Forecast(2, corrected=True))


def table(model: str, prompts: int) -> str:
    """Spearman's rank correlation of the expected error, and of `cᵀ G c` alone, with the measured one, by predictor."""
    session = opened(model, STEPS)
    problem = problem_of(session, calibrated(session), STEPS)
    bench = Bench(session, held_out_jobs(prompts))
    rng = random.Random(0)
    masks = [random_mask(rng, rng.randint(*BUDGETS)) for _ in range(MASKS)]
    lines = [
        "| predictor | masks | rank correlation | of cᵀGc alone | expected, quartiles | measured, quartiles |",
        "|---|---|--:|--:|---|---|",
    ]
    for forecast in FORECASTS:
        expected = [problem.error(mask, forecast) for mask in masks]
        linear = [replace(problem, leak=0.0).error(mask, forecast) for mask in masks]
        found = []
        for mask in tracked(masks, str(forecast)):
            results = bench.each(forecast.section(mask), STEPS)
            found.append(fmean(quality.latent_relative_l2 or 0.0 for _, quality in results))
        lines.append(
            f"| {forecast} | {len(masks)} of {BUDGETS[0]} to {BUDGETS[1]} computed steps | "
            f"{spearman(expected, found):.3f} | {spearman(linear, found):.3f} | "
            f"{quartiles(expected)} | {quartiles(found)} |"
        )
    return (
        "\n".join(lines)
        + f"\n\nMeasured on {prompts} held-out prompts and seeds, calibrated on {CALIBRATED_ON} others."
    )


def random_mask(rng: random.Random, budget: int) -> Mask:
    """Half of the masks anywhere, half of them dense at the start as schedules are."""
    if rng.random() < 0.5:
        return (0, *sorted(rng.sample(range(1, STEPS), budget - 1)))
    steps = set(geometric(STEPS, budget, rng.uniform(1.0, 4.0)))
    for step in rng.sample(sorted(steps - {0}), budget // 3):
        steps.discard(step)
        steps.add(rng.choice(sorted(set(range(1, STEPS)) - steps)))
    return tuple(sorted(steps))


def spearman(one: list[float], other: list[float]) -> float:
    """The correlation of ranks; errors have no ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(*ranks)[0, 1])


def quartiles(values: list[float]) -> str:
    low, high = np.quantile(values, (0.25, 0.75))
    return f"{low:.2%}, {median(values):.2%}, {high:.2%}"
