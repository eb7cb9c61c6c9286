"""Predictors are weights: what they must satisfy whatever the schedule."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.caching.fits import chebyshev, dmd
from hasten.caching.predictors import Weights, ab2, bdf2, damped, dcta, foca, hermite, poly, reuse, taylor, trusted

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


# -- what the others publish


def smooth(step: float) -> float:
    """The function behind the numeric check of METHODS.md: an exponential and a parabola over fifty steps."""
    return math.exp(-4 * step / 50) + 5 * (step / 50) ** 2


def miss(weights: Weights, anchors: list[int], target: int) -> float:
    return abs(math.fsum(w * smooth(tau) for w, tau in zip(weights, anchors, strict=False)) - smooth(target))


@pytest.mark.parametrize(
    ("anchors", "target", "errors"),
    [([20, 14, 8], 23, (0.215, 0.073, 0.046, 0.0096, 0.139)), ([14, 8, 6], 17, (0.116, 0.085, 0.064, 0.010, 0.097))],
)
def test_the_errors_of_reuse_line_taylor_newton_and_hermite_are_those_of_the_table(
    anchors: list[int], target: int, errors: tuple[float, ...]
) -> None:
    weights = (
        reuse(anchors, target),
        poly(anchors, target, 1),
        taylor(anchors, target, 2),
        poly(anchors, target, 2, math.inf),
        hermite(anchors, target, 2, 0.5),
    )
    found = [miss(w, anchors, target) for w in weights]
    assert found == pytest.approx(errors, abs=6e-4)
    # Those that have no place in the table: no worse than the straight line.
    assert miss(ab2(anchors, target), anchors, target) < found[1]
    assert miss(foca(anchors, target), anchors, target) < found[1]


@given(step_grids(), st.floats(0.1, 1))
def test_hermite_of_order_one_is_the_damped_line(grid: tuple[list[int], int], scale: float) -> None:
    anchors, target = grid
    expected = poly(anchors, target, 1, math.inf)
    kappa = 2 * scale**2
    newest, *rest = expected
    damped_line = (kappa * newest + 1 - kappa, *(kappa * w for w in rest))
    assert hermite(anchors, target, 1, scale, max_amplification=math.inf) == pytest.approx(damped_line)


def test_hermite_of_order_two_is_biased_at_its_newest_anchor() -> None:
    # H̃₂/2 = 2σ⁴e² − σ²: at e = 0 a quarter of the second derivative is missing.
    assert hermite([8, 7, 6], 8, 2, 0.5) == pytest.approx((1 - 0.25, 0.5, -0.25))
    assert hermite([2, 1, 0], 4, 2, 0.5) == pytest.approx((1 + 1 + 0.25, -1 - 0.5, 0.25))


def test_hermite_forms_no_derivative_during_the_published_warm_up() -> None:
    assert hermite([2, 1, 0], 3, 2, 0.5, first_enhance=3)[2] == 0
    assert hermite([6, 2, 1], 7, 2, 0.5, first_enhance=3)[2] != 0


def test_adams_bashforth_and_bdf2_have_the_textbook_weights_at_even_gaps() -> None:
    assert ab2([8, 4, 0], 12, math.inf) == pytest.approx((5 / 2, -2, 1 / 2))
    forecast, derivative = bdf2([8, 4, 0], 12)
    assert forecast == pytest.approx((7 / 3, -5 / 3, 1 / 3))
    assert derivative == pytest.approx((3 / 8, -4 / 8, 1 / 8))
    # Heun: half the slope between anchors, half the slope of the forecast
    assert foca([8, 4, 0], 12, math.inf) == pytest.approx((1 + 5 / 4, -3 / 2, 1 / 4))
    s = 0.5
    assert foca([8, 4, 0], 10) == pytest.approx((1 + 5 * s / 4, -3 * s / 2, s / 4))


@given(grids())
def test_bdf2_has_the_derivative_of_the_parabola_on_uneven_grids(grid: tuple[list[float], float]) -> None:
    anchors, target = grid
    if len(anchors) >= 3:
        forecast, derivative = bdf2(anchors, target)
        slope = sum(w * tau**2 for w, tau in zip(derivative, anchors, strict=False))
        assert slope == pytest.approx(2 * anchors[0], abs=1e-9)
        assert math.fsum(forecast) == pytest.approx(1)


@given(grids(), st.floats(1, 50), st.floats(-3, 3), st.floats(-3, 3))
def test_ab2_and_foca_are_exact_for_straight_lines_sum_to_one_and_stay_below_the_bound(
    grid: tuple[list[float], float], bound: float, slope: float, at_zero: float
) -> None:
    anchors, target = grid
    for predictor in (ab2, foca):
        weights = predictor(anchors, target, math.inf)
        predicted = sum(w * (slope * tau + at_zero) for w, tau in zip(weights, anchors, strict=False))
        expected = slope * (target if len(anchors) > 1 else anchors[0]) + at_zero
        assert predicted == pytest.approx(expected, abs=1e-8 * (1 + sum(map(abs, weights))))
        assert math.fsum(weights) == pytest.approx(1)
        bounded = predictor(anchors, target, bound)
        assert sum(map(abs, bounded)) <= bound
        assert predictor(anchors[:1], target) == (1.0,)
        assert predictor(anchors[:2], target, bound) == poly(anchors[:2], target, 1, bound)


def test_a_sigma_that_was_visited_twice_counts_once_everywhere() -> None:
    for predictor in (ab2, foca):
        once = predictor([0.5, 0.6, 0.7], 0.45)
        twice = predictor([0.5, 0.5, 0.6, 0.6, 0.7], 0.45)
        assert twice == (once[0], 0.0, once[1], 0.0, once[2])


@given(step_grids(), st.integers(1, 5), st.floats(1, 50))
def test_what_extrapolates_stays_below_the_bound(grid: tuple[list[int], int], order: int, bound: float) -> None:
    anchors, target = grid
    for weights in (
        hermite(anchors, target, order, max_amplification=bound),
        chebyshev(anchors, target, 50, order, max_amplification=bound),
    ):
        assert len(weights) <= len(anchors)
        assert sum(map(abs, weights)) <= bound


# -- Chebyshev


@given(step_grids(), st.integers(1, 4))
def test_without_ridge_and_blend_chebyshev_passes_through_polynomials(grid: tuple[list[int], int], order: int) -> None:
    anchors, target = grid
    if len(anchors) > order:
        weights = chebyshev(anchors, target, 50, order, ridge=1e-11, blend=1, max_amplification=math.inf)
        for degree in range(order + 1):
            predicted = sum(w * (tau / 50) ** degree for w, tau in zip(weights, anchors, strict=True))
            assert predicted == pytest.approx((target / 50) ** degree, abs=1e-3 * (1 + sum(map(abs, weights))))


def test_the_published_ridge_shrinks_and_is_bounded_far_ahead() -> None:
    # One snapshot of a constant: φ·φ / (φ·φ + λ) with φ = (1, u, …); the line is reuse.
    assert chebyshev([25], 25, 50, blend=1) == pytest.approx((3 / 3.1,))  # T(0) = 1, 0, −1, 0, 1
    anchors = [18, 12, 8, 4, 3, 2, 1, 0]
    near, far = (chebyshev(anchors, target, 50, blend=1, max_amplification=math.inf) for target in (19, 50))
    assert math.fsum(near) == pytest.approx(1, abs=0.06)
    assert sum(map(abs, near)) < sum(map(abs, far))
    # At equal distance the plain polynomial is hopeless.
    assert sum(map(abs, far)) < 0.01 * sum(map(abs, poly(anchors, 50, 4, math.inf)))


def test_blend_is_the_share_of_the_polynomial() -> None:
    anchors, target = [20, 14, 8], 23
    all_of_it, none_of_it = (chebyshev(anchors, target, 50, blend=b, max_amplification=math.inf) for b in (1, 0))
    assert none_of_it == pytest.approx((*poly(anchors, target, 1), 0))
    half = [(a + b) / 2 for a, b in zip(all_of_it, none_of_it, strict=True)]
    assert chebyshev(anchors, target, 50, blend=0.5, max_amplification=math.inf) == pytest.approx(half)


# -- dynamic modes


def gram_of(values: list[list[float]]) -> list[list[float]]:
    return [[math.fsum(a * b for a, b in zip(one, other, strict=True)) for other in values] for one in values]


def modes(step: float) -> list[float]:
    """One mode that decays and two that turn together."""
    turn = math.pi * step / 30
    return [0.9 ** (step / 4), math.cos(turn), math.sin(turn), 2 * 0.9 ** (step / 4) + math.cos(turn)]


@given(st.integers(1, 6), st.integers(1, 5), st.integers(5, 6), st.integers(0, 20))
def test_dmd_finds_modes_that_decay_and_turn(gap: int, ahead: int, count: int, first: int) -> None:
    anchors = [first + gap * k for k in range(count)][::-1]
    values = [modes(step) for step in anchors]
    weights = dmd(anchors, anchors[0] + ahead, gram_of(values), math.inf)
    predicted = [math.fsum(w * v[i] for w, v in zip(weights, values, strict=True)) for i in range(4)]
    assert predicted == pytest.approx(modes(anchors[0] + ahead), abs=1e-3)


def test_dmd_draws_growing_modes_back_onto_the_unit_circle() -> None:
    anchors = [12, 8, 4, 0]
    growing = gram_of([[1.5**k] for k in (3, 2, 1, 0)])
    weights = dmd(anchors, 40, growing)
    assert math.fsum(w * 1.5**k for w, k in zip(weights, (3, 2, 1, 0), strict=True)) == pytest.approx(1.5**3)


def test_dmd_gives_back_its_newest_snapshot_at_its_place() -> None:
    anchors = [20, 15, 10, 5, 0]
    values = [[math.sin(k * i + i * i) for i in range(9)] for k in anchors]
    weights = dmd(anchors, 20, gram_of(values), math.inf)
    predicted = [math.fsum(w * v[i] for w, v in zip(weights, values, strict=True)) for i in range(9)]
    assert predicted == pytest.approx(values[0], abs=1e-6)


@given(step_grids(), st.floats(1, 8), st.lists(st.floats(-3, 3), min_size=36, max_size=36))
def test_dmd_is_the_line_where_it_has_too_little_to_go_by(
    grid: tuple[list[int], int], bound: float, numbers: list[float]
) -> None:
    anchors, target = grid
    gram = gram_of([numbers[6 * j : 6 * j + 6] for j in range(len(anchors))])
    weights = dmd(anchors, target, gram, bound)
    assert all(map(math.isfinite, weights))
    assert sum(map(abs, weights)) <= bound
    gaps = [a - b for a, b in pairwise(anchors)]
    if len(gaps) < 3 or len(set(gaps[:3])) > 1:
        assert weights == poly(anchors, target, 1, bound)


def test_dmd_of_nothing_but_zeros_is_finite() -> None:
    assert dmd([3, 2, 1, 0], 4, [[0.0] * 4] * 4) == poly([3, 2, 1, 0], 4, 1)


# -- trust


def test_trust_is_lost_with_distance_and_with_a_second_opinion_that_differs() -> None:
    values = [[1.0, 2.0], [0.5, 2.5], [0.0, 2.0]]
    gram, line = gram_of(values), (2.0, -1.0)
    agrees = trusted(line, line, gram, horizon=1, theta=0.25)
    kappa = 1 / (1 + math.exp(-4 * 0.25))
    assert agrees == pytest.approx((1 + kappa, -kappa))
    farther = trusted(line, line, gram, horizon=4, theta=0.25)
    assert farther == pytest.approx(damped(line, kappa * math.exp(-0.9)))
    differs = trusted(line, (3.0, -3.0, 1.0), gram, horizon=1, theta=0.25)
    # ŷ = (1.5, 1.5), the other opinion (1.5, 0.5): r = 1 / (1.5 √2)
    risk = 1 / (1.5 * math.sqrt(2))
    assert differs == pytest.approx(damped(line, 1 / (1 + math.exp(-4 * (0.25 - risk)))))
    assert math.fsum(differs) == pytest.approx(1)


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(1, 5))
def test_trajectory_alignment_keeps_to_its_bound_and_never_lags_behind(alignment: float, bound: float) -> None:
    weights = dcta(alignment, bound)
    assert sum(weights) == pytest.approx(1)
    assert sum(map(abs, weights)) <= bound + 1e-9
    assert weights[0] >= 1
