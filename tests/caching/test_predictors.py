"""Predictors are weights: what they must satisfy whatever the schedule."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.caching.predictors import damped, poly, reuse, taylor

gaps = st.lists(st.floats(0.05, 3.0), min_size=1, max_size=6)
orders = st.integers(0, 5)


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[float], float]:
    """Uneven coordinates going down as sigmas do, newest first, and a target after them."""
    coordinates = [10.0]
    for gap in draw(gaps):
        coordinates.append(coordinates[-1] - gap)
    target = coordinates[-1] - draw(st.floats(0.05, 3.0))
    return coordinates[::-1], target


@st.composite
def step_grids(draw: st.DrawFn) -> tuple[list[int], int]:
    """Computed steps, newest first, and a later step."""
    steps = sorted(draw(st.sets(st.integers(0, 40), min_size=1, max_size=6)), reverse=True)
    return steps, steps[0] + draw(st.integers(1, 8))


@given(grids(), orders, st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_order_p_reproduces_polynomials_of_degree_p_on_uneven_grids(
    grid: tuple[list[float], float], order: int, coefficients: list[float]
) -> None:
    anchors, target = grid
    degree = min(order, len(anchors) - 1)

    def value(tau: float) -> float:
        return sum(c * (tau / 10) ** k for k, c in enumerate(coefficients[: degree + 1]))

    weights = poly(anchors, target, order, max_amplification=math.inf)
    predicted = math.fsum(w * value(tau) for w, tau in zip(weights, anchors, strict=False))
    noise = 1e-13 * sum(map(abs, weights))
    assert predicted == pytest.approx(value(target), rel=1e-9, abs=1e-9 + 100 * noise)


@given(grids(), orders, st.floats(1, 50), st.floats(0, 1))
def test_poly_weights_sum_to_one_and_stay_below_the_bound(
    grid: tuple[list[float], float], order: int, bound: float, damping: float
) -> None:
    weights = poly(*grid, order, bound)
    assert math.fsum(weights) == pytest.approx(1)
    assert sum(map(abs, weights)) <= bound
    assert math.fsum(damped(weights, damping)) == pytest.approx(1)


@given(step_grids(), orders)
def test_the_order_falls_when_snapshots_are_few(grid: tuple[list[int], int], order: int) -> None:
    anchors, target = grid
    assert len(poly(anchors, target, order, math.inf)) == min(order + 1, len(anchors))
    assert poly(anchors[:1], target, order) == reuse(anchors[:1], target) == (1.0,)


def test_the_order_falls_where_noise_would_be_amplified_too_much() -> None:
    assert poly([8, 7], 10, order=1, max_amplification=math.inf) == (3.0, -2.0)
    assert poly([8, 7], 10, order=1, max_amplification=4.0) == (1.0,)
    # order 2 needs Σ|w| = 19, order 1 needs 3
    assert poly([8, 4, 0], 12, order=2, max_amplification=6.9) == (2.0, -1.0)
    assert poly([8, 4, 0], 12, order=2, max_amplification=7.0) == (3.0, -3.0, 1.0)


def test_a_sigma_that_was_visited_twice_counts_once_with_its_newer_snapshot() -> None:
    assert poly([0.5, 0.5, 0.7], 0.4, order=1) == pytest.approx((1.5, 0.0, -0.5))
    assert poly([0.5, 0.5], 0.4, order=1) == (1.0,)


def test_an_anchor_predicts_itself_exactly() -> None:
    assert poly([0.3, 0.55, 0.9], 0.55, order=2, max_amplification=math.inf) == (0.0, 1.0, 0.0)


def test_half_damping_lies_half_way_to_the_newest() -> None:
    assert damped(poly([8, 4], 12), 0.5) == (1.5, -0.5)
    assert damped(poly([8, 4], 12), 0.0) == (1.0, 0.0)
    assert damped((1.5, -0.5), 1.0) == (1.5, -0.5)


def published_taylorseer(
    computed: list[int], values: list[float], target: int, order: int, first_enhance: int
) -> float:
    """The recursion as published, with derivatives kept from step to step."""
    factors: list[float] = []
    before = 0
    for step, value in zip(computed, values, strict=True):
        fresh = [value]
        for i in range(order):
            if i < len(factors) and step > first_enhance - 2:
                fresh.append((fresh[i] - factors[i]) / (step - before))
            else:
                break
        factors, before = fresh, step
    return math.fsum(factor * (target - before) ** i / math.factorial(i) for i, factor in enumerate(factors))


@given(step_grids(), st.integers(0, 4), st.integers(0, 5), st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_taylor_equals_the_published_recursion_at_uneven_gaps(
    grid: tuple[list[int], int], order: int, first_enhance: int, numbers: list[float]
) -> None:
    anchors, target = grid
    values = numbers[: len(anchors)]
    # The recursion has seen all computed steps; the weights see the last order + 1 only.
    expected = published_taylorseer(anchors[::-1], values, target, order, first_enhance)
    weights = taylor(anchors[: order + 1], target, order, first_enhance)
    predicted = math.fsum(w * v for w, v in zip(weights, values[::-1], strict=False))
    scale = 1 + sum(map(abs, weights))
    assert predicted == pytest.approx(expected, rel=1e-9, abs=1e-9 * scale)
    assert math.fsum(weights) == pytest.approx(1, abs=1e-9 * scale)


def test_taylor_of_order_one_is_the_straight_line_and_of_order_two_is_not_the_parabola() -> None:
    assert taylor([14, 8], 17, order=1) == poly([14, 8], 17, order=1)
    # METHODS §4.2, uniform gaps with s = e/N: [1+s+s²/2, −s−s², s²/2]
    s = 3 / 6
    assert taylor([20, 14, 8], 23, order=2) == pytest.approx((1 + s + s * s / 2, -s - s * s, s * s / 2))
    assert poly([20, 14, 8], 23, order=2) == pytest.approx((1 + 1.5 * s + s * s / 2, -2 * s - s * s, s / 2 + s * s / 2))


@pytest.mark.parametrize(("computed", "ratio"), [([1, 2, 8], 7 / 12), ([1, 7, 8], 3.5)])
def test_taylor_of_order_two_has_the_published_wrong_divisor_at_uneven_gaps(computed: list[int], ratio: float) -> None:
    # For y = k²/2 the second derivative is 1; its part in the prediction is e²/2 times what the recursion takes it for.
    newest, *rest = computed[::-1]
    with_second = taylor([newest, *rest], newest + 1, order=2)
    with_first = (*taylor([newest, *rest], newest + 1, order=1), 0.0)
    values = [k * k / 2 for k in (newest, *rest)]
    second = sum((a - b) * y for a, b, y in zip(with_second, with_first, values, strict=True))
    assert second == pytest.approx(ratio / 2)
