"""Statistics of a benchmark: intervals that hold what they promise, and lines that nothing beats."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.bench.statistics import mean, paired_ratio, pareto, percentile, ratio, ratio_of_paired_ratios, stretch

seconds = st.floats(0.001, 1000)
some = st.lists(seconds, min_size=1, max_size=20)
pairs = st.lists(st.tuples(seconds, seconds), min_size=1, max_size=12)


@given(some, st.floats(0, 1))
def test_percentiles_are_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.quantile(values, share)))


@given(some)
def test_percentiles_end_at_the_extremes(values: list[float]) -> None:
    assert (percentile(values, 0), percentile(values, 1)) == (min(values), max(values))


@given(pairs)
def test_an_interval_holds_its_estimate_and_turns_round_with_the_question(measured: list[tuple[float, float]]) -> None:
    slow, fast = zip(*measured, strict=True)
    found, turned = paired_ratio(slow, fast), paired_ratio(fast, slow)
    assert found.value == pytest.approx(1 / turned.value)
    if len(measured) == 1:
        assert (found.low, found.high) == (None, None)
        return
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high


@given(pairs, st.floats(0.01, 100))
def test_a_machine_that_is_slower_by_a_factor_changes_no_speed_up(
    measured: list[tuple[float, float]], factor: float
) -> None:
    slow, fast = zip(*measured, strict=True)
    scaled = paired_ratio([factor * x for x in slow], [factor * x for x in fast])
    assert scaled == pytest.approx(paired_ratio(slow, fast), nan_ok=False)


def test_a_hand_computed_speed_up() -> None:
    assert paired_ratio([4, 9, 10], [2, 3, 10]).value == pytest.approx(2)
    assert ratio([4, 6, 8], [3, 3, 2]).value == pytest.approx(2)
    assert ratio_of_paired_ratios(([8, 8], [2, 2]), ([4, 4], [2, 2])).value == pytest.approx(2)
    assert mean([1, 2, 6]).value == 3


def test_equal_timings_leave_no_doubt() -> None:
    assert paired_ratio([2, 2, 2], [1, 1, 1]) == pytest.approx((2, 2, 2))
    assert paired_ratio([2, 2, 2], [1, 1, 1]).excludes(1)
    assert not paired_ratio([2], [1]).excludes(1)


@pytest.mark.parametrize("count", [3, 5, 10, 30])
def test_the_same_thing_twice_is_called_different_about_as_rarely_as_promised(count: int) -> None:
    rng = np.random.default_rng(count)
    trials = 200
    wrong = 0
    for _ in range(trials):
        times = np.exp(rng.normal(0, 0.05, (2, count)) + rng.normal(0, 0.5, count))  # pairs drift together
        wrong += paired_ratio(times[0], times[1]).excludes(1)
    assert wrong / trials <= 0.1


def test_a_true_speed_up_is_seen() -> None:
    rng = np.random.default_rng(0)
    times = np.exp(rng.normal(0, 0.03, (2, 10)))
    found = paired_ratio(2 * times[0], times[1])
    assert found.excludes(1)
    assert not found.excludes(2)


def test_the_stretch_ends_near_one() -> None:
    assert stretch(3) == pytest.approx(4.303 / 1.96 * math.sqrt(1.5), rel=1e-3)
    assert stretch(3) > stretch(4) > stretch(1000) > 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_the_pareto_line_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    kept = pareto(points)
    for index, (x, y) in enumerate(points):
        beaten = any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
        assert (index in kept) is not beaten
    line = [points[index] for index in kept]
    assert line == sorted(line)
    assert [y for _, y in line] == sorted((y for _, y in line), reverse=True)
