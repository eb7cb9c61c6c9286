"""Schedules whose skipped steps are corrected: the formula against an integration written out."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.caching.ledger import SHARE
from hasten.caching.prediction import Moment
from hasten.caching.predictors import poly
from hasten.caching.resolving import resolve
from hasten.errors import PlanError
from hasten.plan import load_plan
from hasten.schedule.problem import FORECASTS, Forecast, Problem

STEPS = 18
MASK = (0, 1, 3, 8, 12, 16)


def problem(gains: np.ndarray) -> tuple[Problem, np.ndarray, np.ndarray]:
    even = np.linspace(1, 0, STEPS + 1)
    levels = 3 * even / (1 + 2 * even)
    values = np.stack([np.cos((1 + 3 * channel) * levels[:-1] + channel) for channel in range(6)], axis=1)
    response = np.diff(levels)
    power = float(np.square(response @ values).mean())
    gram = values @ values.T / 6
    return Problem(levels[:-1], gains * response, gram, power, response, leak=0.0), values, response


@pytest.mark.parametrize("order", [0, 1, 2])
def test_the_error_is_that_of_a_corrected_integration_written_out(order: int) -> None:
    gains = np.linspace(0.8, 1.3, STEPS)
    made, values, response = problem(gains)
    places = np.concatenate([[0], np.abs(response).cumsum()[:-1]])
    moved = np.zeros(6)
    debt = np.zeros(6)
    for step in range(STEPS):
        if step in MASK:
            moved -= gains[step] * SHARE * debt
            debt = np.zeros(6)
            continue
        before = [anchor for anchor in reversed(MASK) if anchor < step]
        after = next((anchor for anchor in MASK if anchor > step), None)
        weights = poly([float(made.sigmas[a]) for a in before], float(made.sigmas[step]), order)
        stand_in = sum(w * values[a] for w, a in zip(weights, before, strict=False))
        moved += gains[step] * response[step] * (stand_in - values[step])
        if after is None:
            continue
        nodes = [after, *before[:2]]
        weights = poly([places[a] for a in nodes], places[step], len(nodes) - 1, 16.0)
        known = sum(w * values[a] for w, a in zip(weights, nodes, strict=False))
        debt += response[step] * (stand_in - known)
    truth = float(np.sqrt(np.square(moved).mean() / made.power))
    assert made.error(MASK, Forecast(order, corrected=True)) == pytest.approx(truth, rel=1e-6)


def test_correcting_helps_and_the_plan_says_so() -> None:
    made, *_ = problem(np.ones(STEPS))
    assert made.error(MASK, Forecast(1, corrected=True)) < 0.8 * made.error(MASK, Forecast(1))
    assert any(forecast.corrected for forecast in FORECASTS)
    cache = load_plan({"cache": Forecast(1, corrected=True).section(MASK)}).caches[0]
    assert cache.correct is True
    assert str(Forecast(1, corrected=True)) == "poly 1, corrected"


def test_least_squares_is_the_best_that_three_values_can_do_and_its_plan_runs_it() -> None:
    made, values, _ = problem(np.ones(STEPS))
    fitted = Forecast(2, fitted=True)
    rows = made.fitted(MASK, fitted)
    assert rows is not None
    steps = [step for step in range(STEPS) if step not in MASK]
    for step, row in zip(steps, rows, strict=True):
        anchors = [anchor for anchor in reversed(MASK) if anchor < step][:3]
        assert len(row) == len(anchors)
        assert sum(row) == pytest.approx(1)
        stand_in = sum(w * values[a] for w, a in zip(row, anchors, strict=True))
        line = poly([float(a) for a in anchors], float(step), 2, 16.0)
        other = sum(w * values[a] for w, a in zip(line, anchors, strict=False))
        assert np.linalg.norm(stand_in - values[step]) <= 1.05 * np.linalg.norm(other - values[step])
    settings = resolve(load_plan({"cache": fitted.section(MASK, rows)}).cache)
    assert settings.weights(Moment((8, 3, 1), 10, (0.3, 0.6, 0.9), 0.2)) == rows[steps.index(10)]
    assert made.fitted(MASK, Forecast(1)) is None
    with pytest.raises(PlanError, match=r"needs cache\.mask and cache\.fitted_weights"):
        load_plan({"cache": {"predictor": "least_squares", "mask": [0, 2]}})
    with pytest.raises(PlanError, match="has no effect with"):
        load_plan({"cache": {"predictor": "poly", "fitted_weights": [[1.0]]}})
