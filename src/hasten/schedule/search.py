"""Search: the steps to compute, for every number of them, that leave the least error in the final latent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import NamedTuple

import numpy as np

from hasten.schedule.problem import FORECASTS, Forecast, Mask, Problem, Vector

_REACH = 4
"""How far a computed step is moved at a time."""


class Candidate(NamedTuple):
    """A schedule with what the Gram matrix says of it."""

    error: float
    mask: Mask
    forecast: Forecast


def frontier(
    problem: Problem, budgets: Sequence[int], forecasts: Sequence[Forecast] = FORECASTS
) -> dict[int, list[Candidate]]:
    """For each number of computed steps the schedules of all predictors that the search came by, best first.

    Args:
        budgets: numbers of computed steps, each from 1 to T.
    """
    found: dict[int, dict[tuple[Mask, Forecast], float]] = {budget: {} for budget in budgets}
    for forecast in forecasts:
        starts = _dynamic(problem, forecast, max(budgets))
        for budget in budgets:
            seeds = {starts[budget], *(_geometric(problem.steps, budget, power) for power in (1.0, 2.0, 3.0))}
            for seed in seeds:
                for mask, error in _descend(problem, forecast, seed):
                    found[budget][mask, forecast] = error
    return {
        budget: sorted(
            (Candidate(error, mask, forecast) for (mask, forecast), error in masks.items()), key=lambda one: one.error
        )
        for budget, masks in found.items()
    }


def evenly(problem: Problem, budget: int, forecasts: Sequence[Forecast] = FORECASTS) -> Candidate:
    """Even gaps, with the predictor that the Gram matrix finds best for them."""
    mask = _geometric(problem.steps, budget, 1.0)
    tried = [Candidate(problem.error(mask, forecast), mask, forecast) for forecast in forecasts]
    return min(tried, key=lambda one: one.error)


def _dynamic(problem: Problem, forecast: Forecast, most: int) -> dict[int, Mask]:
    """The exact best mask by the sum of its stretches' errors, for every number of computed steps up to `most`.

    State: the last two anchors, so exact for order 0 and 1; for higher orders, which look further back, it is a start.
    `D[m, j, k] = min_i D[m−1, i, j] + C[i, j, k]`.
    """
    costs = problem.stretch_costs(forecast if forecast.order < 2 else replace(forecast, order=1))
    steps = problem.steps
    # One anchor, at 0: stretches end at k.
    best = np.full((steps, steps + 1), np.inf)
    best[0] = costs[0, 0]
    masks: dict[int, Mask] = {1: (0,)}
    parents: list[Vector] = []
    for count in range(2, most + 1):
        # best[i, j]: anchors so far end with i, j; the next stretch runs from j to k.
        sums = best[:, :steps, None] + costs
        parents.append(sums.argmin(axis=0))
        best = sums.min(axis=0)
        masks[count] = _trace(parents, int(best[:, steps].argmin()), steps, count)
    return masks


def _trace(parents: list[Vector], last: int, end: int, count: int) -> Mask:
    """Walk back from the last anchor of `count`."""
    anchors = [last]
    following = end
    for chosen in reversed(parents[: count - 1]):
        before = int(chosen[anchors[-1], following])
        following = anchors[-1]
        anchors.append(before)
    return tuple(reversed(anchors))


def _descend(problem: Problem, forecast: Forecast, mask: Mask) -> Iterator[tuple[Mask, float]]:
    """Move one computed step after the other to where the whole error is least, and two at once where one is stuck.

    Yields:
        every mask that was the best so far, with its error.
    """
    error = problem.error(mask, forecast)
    yield mask, error
    singles = [(position,) for position in range(1, len(mask))]
    for neighbourhood in (singles, [*singles, *combinations(range(1, len(mask)), 2)]):
        improved = True
        while improved:
            improved = False
            for positions in neighbourhood:
                after, moved = min(
                    ((problem.error(moved, forecast), moved) for moved in _moves(mask, positions, problem.steps)),
                    default=(error, mask),
                )
                if after < error * (1 - 1e-6):
                    mask, error, improved = moved, after, True
                    yield mask, error


def _moves(mask: Mask, positions: tuple[int, ...], steps: int) -> Iterator[Mask]:
    """The masks with one computed step elsewhere near, or with two of them moved by one."""
    rest = [anchor for position, anchor in enumerate(mask) if position not in positions]
    reach = _REACH if len(positions) == 1 else 1
    shifts = [shift for shift in range(-reach, reach + 1) if shift]
    for moves in product(shifts, repeat=len(positions)):
        moved = {*rest, *(mask[position] + shift for position, shift in zip(positions, moves, strict=True))}
        if len(moved) == len(mask) and min(moved) == 0 and max(moved) < steps:
            yield tuple(sorted(moved))


def _geometric(steps: int, budget: int, power: float) -> Mask:
    """`k_i = round((T−1)(i/(B−1))^p)`, made strictly increasing."""
    if budget == 1:
        return (0,)
    wanted = [round((steps - 1) * (i / (budget - 1)) ** power) for i in range(budget)]
    for i in range(1, budget):
        wanted[i] = max(wanted[i], wanted[i - 1] + 1)
    for i in range(budget - 1, 0, -1):
        wanted[i] = min(wanted[i], steps - budget + i)
    return tuple(wanted)
