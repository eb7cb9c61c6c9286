"""Measured figures serve other numbers of steps, and are fitted so that a larger change never counts less."""

from __future__ import annotations

from itertools import pairwise
from math import exp, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.caching.figures import Figures, figures_for
from hasten.calibration.fit import fit

sigmas = st.lists(st.floats(0.01, 20), min_size=2, max_size=30, unique=True).map(lambda xs: sorted(xs, reverse=True))


def test_ratios_at_the_measured_steps_are_the_measured_ones() -> None:
    figures = Figures((1.0, 0.7, 0.3), (1.0, 1.2, 0.9))
    assert figures.ratios_at((1.0, 0.7, 0.3)) == pytest.approx((1.0, 1.2, 0.9))
    assert figures.ratios_at(()) == (1.0, 1.2, 0.9)


@settings(max_examples=40)
@given(sigmas, st.data())
def test_fewer_steps_grow_as_much_as_the_steps_they_leave_out(levels: list[float], data: st.DataObject) -> None:
    # The size of the residual is a function of the noise level, whatever the steps.
    sizes = [exp(-level / 10) for level in levels]
    ratios = (1.0, *(after / before for before, after in pairwise(sizes)))
    kept = sorted(data.draw(st.sets(st.sampled_from(levels), min_size=2)), reverse=True)
    found = Figures(tuple(levels), ratios).ratios_at(kept)
    assert prod(found) == pytest.approx(exp(-kept[-1] / 10) / exp(-kept[0] / 10), rel=1e-6)


def test_outside_of_what_was_measured_the_size_stays() -> None:
    assert Figures((1.0, 0.5), (1.0, 2.0)).ratios_at((3.0, 2.0, 0.5, 0.1)) == pytest.approx((1.0, 1.0, 2.0, 1.0))


def test_a_branch_that_was_not_measured_takes_the_figures_of_the_first() -> None:
    cond, uncond = Figures((1.0,), (1.0,)), Figures((1.0,), (2.0,))
    known = {"cond": cond, "uncond": uncond}
    assert figures_for("uncond", known) is uncond
    assert figures_for("third", known) is cond
    assert figures_for("cond", {}) is None


@settings(max_examples=40)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=2, max_size=60))
def test_a_larger_change_never_counts_less(pairs: list[tuple[float, float]]) -> None:
    found = fit(*zip(*pairs, strict=True))
    if found is None:
        return
    figures = Figures((1.0,), (1.0,), found.polynomial, found.fitted)
    high = found.fitted[1]
    values = [figures.rescale(signal) for signal in np.linspace(0, 2 * high, 50)]
    scale = max(values) + 1e-9
    assert all(after >= before - 1e-6 * scale for before, after in pairwise(values))
    assert values[0] == 0


def test_a_polynomial_is_found_again() -> None:
    signals = np.linspace(0.05, 0.5, 60)
    found = fit(signals, 0.2 + 0.5 * signals + 2 * signals**3)
    assert found is not None
    figures = Figures((1.0,), (1.0,), found.polynomial, found.fitted)
    assert figures.rescale(0.3) == pytest.approx(0.2 + 0.15 + 2 * 0.027, rel=1e-4)
    assert found.explained == pytest.approx(1, abs=1e-6)
    # Beyond the data: in proportion, not wherever a polynomial of degree 4 may go.
    assert figures.rescale(1.0) == pytest.approx(2 * figures.rescale(0.5))
    assert figures.rescale(0.0) == 0


def test_where_the_input_tells_nothing_there_is_no_polynomial() -> None:
    signals = np.linspace(0, 1, 20)
    assert fit(signals, 1 - signals) is None
    assert fit([0.3] * 9, [0.1] * 9) is None
    assert fit([0.1], [0.2]) is None


def test_few_samples_get_a_low_degree() -> None:
    found = fit(*zip(*[(0.1 * k, 0.01 * k * k) for k in range(1, 10)], strict=True))
    assert found is not None
    assert len(found.polynomial) <= 3
