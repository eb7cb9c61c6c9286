"""The theory of schedules: the error formula against a sum written out, and the search against all masks there are."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from hasten.caching import predictors
from hasten.caching.tolerance import LEAK
from hasten.plan import load_plan
from hasten.schedule.problem import FORECASTS, Forecast, Problem, Vector
from hasten.schedule.search import _dynamic, _geometric, frontier


def flow(steps: int) -> Vector:
    """Noise levels of a shifted flow, with the 0 at the end."""
    even = np.linspace(1, 0, steps + 1)
    return 3 * even / (1 + 2 * even)


def outputs(steps: int, channels: int = 6) -> Vector:
    """Smooth functions of sigma, as a model's outputs are; shape (steps, channels)."""
    sigmas = flow(steps)[:-1]
    return np.stack([np.cos((1 + 3 * channel) * sigmas + channel) for channel in range(channels)], axis=1)


def problem_of(values: Vector, leak: float = LEAK) -> Problem:
    levels = flow(len(values))
    power = float(np.square(np.diff(levels) @ values).mean())
    return Problem(levels[:-1], np.diff(levels), values @ values.T / values.shape[1], power, leak=leak)


@pytest.mark.parametrize("forecast", [one for one in FORECASTS if not one.corrected and not one.fitted], ids=str)
def test_the_error_is_that_of_an_integration_written_out(forecast: Forecast) -> None:
    values = outputs(20)
    levels = flow(20)
    mask = (0, 1, 3, 8, 12, 17)
    final = exact = np.zeros(values.shape[1])
    for step in range(20):
        anchors = [anchor for anchor in reversed(mask) if anchor <= step][: forecast.order + 1]
        stand_in = values[step]
        if step not in mask:
            weights = forecast.weights([float(levels[anchor]) for anchor in anchors], float(levels[step]))
            stand_in = sum(weight * values[anchor] for weight, anchor in zip(weights, anchors, strict=False))
        final = final + (levels[step + 1] - levels[step]) * stand_in
        exact = exact + (levels[step + 1] - levels[step]) * values[step]
    truth = np.linalg.norm(final - exact) / np.linalg.norm(exact)
    assert problem_of(values, leak=0.0).error(mask, forecast) == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("corrected", [False, True])
def test_of_what_cancels_on_paper_a_share_remains(corrected: bool) -> None:
    values, mask, forecast = outputs(20), (0, 1, 3, 8, 12, 17), Forecast(1, corrected=corrected)
    linear = problem_of(values, leak=0.0)
    plain = Forecast(1)
    alone = 0.0
    for position, until in enumerate((*mask[1:], 20)):
        part = linear._errors(plain, mask[max(0, position - 1) : position + 1], until).sum(axis=0)
        alone += float(np.sqrt(part @ linear.gram @ part / linear.power))
    expected = np.hypot(linear.error(mask, forecast), 0.25 * alone)
    assert problem_of(values, leak=0.25).error(mask, forecast) == pytest.approx(expected, rel=1e-9)


def test_weights_are_those_of_the_cache() -> None:
    from hasten.caching.prediction import Moment
    from hasten.caching.resolving import resolve

    forecast = Forecast(2, 0.75)
    settings = resolve(load_plan({"cache": forecast.section((0, 2, 5))}).cache)
    assert settings.weights(Moment((5, 2, 0), 7, (0.6, 0.8, 1.0), 0.4)) == forecast.weights((0.6, 0.8, 1.0), 0.4)
    reuse = resolve(load_plan({"cache": Forecast(0).section((0, 2))}).cache)
    assert reuse.weights(Moment((2, 0), 3, (0.6, 1.0), 0.4)) == predictors.reuse((0.6, 1.0), 0.4)


def test_a_run_with_every_step_computed_has_no_error_and_a_better_mask_has_less() -> None:
    problem = problem_of(outputs(12))
    assert problem.error(tuple(range(12)), Forecast(1)) == 0
    assert problem.error((0, 3, 6, 9, 11), Forecast(1)) < problem.error((0, 1, 2, 3, 4), Forecast(1))


@pytest.mark.parametrize("forecast", [Forecast(0), Forecast(1), Forecast(1, 0.5)], ids=str)
def test_dynamic_programming_finds_the_least_sum_of_stretches(forecast: Forecast) -> None:
    steps = 9
    problem = problem_of(outputs(steps))

    def additive(mask: tuple[int, ...]) -> float:
        total = 0.0
        for position, anchor in enumerate(mask):
            until = mask[position + 1] if position + 1 < len(mask) else steps
            rows = problem._errors(forecast, mask[max(0, position - 1) : position + 1], until)
            part = rows.sum(axis=0)
            total += part @ problem.gram @ part
            assert until > anchor
        return total

    found = _dynamic(problem, forecast, 6)
    for budget in range(1, 7):
        best = min(((0, *rest) for rest in combinations(range(1, steps), budget - 1)), key=additive)
        assert additive(found[budget]) == pytest.approx(additive(best), rel=1e-9)


def test_the_search_finds_the_best_of_all_masks_of_a_short_run() -> None:
    steps = 10
    problem = problem_of(outputs(steps))
    forecast = Forecast(1, 0.75)
    for budget in (3, 4, 5):
        best = min(problem.error((0, *rest), forecast) for rest in combinations(range(1, steps), budget - 1))
        found = frontier(problem, [budget], [forecast])[budget][0]
        assert found.error <= 1.05 * best
        assert found.error == pytest.approx(problem.error(found.mask, forecast))


def test_candidates_are_sorted_valid_and_better_with_more_computed_steps() -> None:
    problem = problem_of(outputs(24))
    found = frontier(problem, [4, 8, 12], FORECASTS[:3])
    errors = []
    for budget, candidates in found.items():
        assert all(len(one.mask) == budget and one.mask[0] == 0 for one in candidates)
        assert all(tuple(sorted(set(one.mask))) == one.mask and one.mask[-1] < 24 for one in candidates)
        assert [one.error for one in candidates] == sorted(one.error for one in candidates)
        even = _geometric(24, budget, 1.0)
        assert candidates[0].error <= min(problem.error(even, forecast) for forecast in FORECASTS[:3])
        errors.append(candidates[0].error)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("steps", "budget", "power"), [(50, 9, 3.4), (50, 50, 1.0), (10, 9, 4.0), (5, 1, 2.0)])
def test_geometric_masks_are_strictly_increasing_and_inside(steps: int, budget: int, power: float) -> None:
    mask = _geometric(steps, budget, power)
    assert len(mask) == budget
    assert mask[0] == 0
    assert all(one < other for one, other in pairwise(mask))
    assert mask[-1] < steps
