"""Adaptive policies get numbers and give decisions: no model in here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.caching.adaptive import (
    Accumulate,
    Adaptive,
    Codebook,
    Compare,
    Observed,
    Table,
    Verify,
    polynomial,
    stretched,
)
from hasten.caching.policies import Policy, interval, mask

signals = st.lists(st.floats(0, 2), min_size=1, max_size=40)


def guard(first: int = 1, last: int = 0, retention: float = 0.0) -> Policy:
    return partial(interval, interval=None, first_enhance=first, cooldown=last, retention=retention)


def computed_steps(policy: Adaptive, measured: Sequence[float]) -> list[int]:
    """Run a policy as the engine does, with the signal that each step would show."""
    steps = []
    for index, signal in enumerate(measured):
        decision = policy.decide(index, len(measured)) or policy.decide(index, len(measured), signal)
        assert decision is not None
        if decision.compute:
            steps.append(index)
        policy.settle(index, decision.compute)
    return steps


def published_teacache(distances: Sequence[float], coefficients: Sequence[float], threshold: float) -> list[int]:
    """The published rule: a sum of the rescaled distances, reset where it computes; first and last are computed."""
    steps, accumulated = [], 0.0
    for step, distance in enumerate(distances):
        if step in (0, len(distances) - 1):
            steps.append(step)
            accumulated = 0.0
            continue
        accumulated += float(np.poly1d(coefficients)(distance))
        if accumulated >= threshold:
            steps.append(step)
            accumulated = 0.0
    return steps


@given(signals, st.floats(0, 3))
def test_accumulate_computes_the_steps_that_teacache_publishes(distances: list[float], threshold: float) -> None:
    coefficients = (0.5, 0.25, 0.1)
    policy = Accumulate(guard(1, 1), None, None, threshold, partial(polynomial, coefficients))
    assert computed_steps(policy, distances) == published_teacache(distances, coefficients, threshold)


def test_compare_looks_at_each_step_by_itself() -> None:
    assert computed_steps(Compare(guard(), threshold=0.1), [0, 0.1, 0.1, 0.2, 0.05, 0.11]) == [0, 3, 5]


def test_a_limit_on_drift_bounds_what_compare_lets_pass() -> None:
    policy = Compare(guard(), threshold=0.1, max_drift=0.2)
    assert computed_steps(policy, [0, 0.08, 0.08, 0.08, 0.08, 0.08]) == [0, 3]


def published_magcache(ratios: Sequence[float], threshold: float, max_skips: int, retention: float) -> list[int]:
    """The published rule, with its three counters."""
    steps, ratio, number, error = [], 1.0, 0, 0.0
    for step, gamma in enumerate(ratios):
        if step >= int(retention * len(ratios) + 0.5) and steps:
            ratio, number = ratio * gamma, number + 1
            error += abs(1 - ratio)
            if error <= threshold and number <= max_skips:
                continue
            ratio, number, error = 1.0, 0, 0.0
        steps.append(step)
    return steps


@given(st.lists(st.floats(0.7, 1.3), min_size=1, max_size=50), st.floats(0, 0.5), st.integers(0, 6), st.floats(0, 1))
def test_table_computes_the_steps_that_magcache_publishes(
    ratios: list[float], threshold: float, max_skips: int, retention: float
) -> None:
    policy = Table(guard(0, 0, retention), max_skips, None, ratios, threshold)
    assert computed_steps(policy, [nan] * len(ratios)) == published_magcache(ratios, threshold, max_skips, retention)


def test_a_step_beyond_the_table_is_computed() -> None:
    assert computed_steps(Table(guard(), ratios=(1, 1, 1), threshold=1), [0] * 5) == [0, 3, 4]


@pytest.mark.parametrize("signal", [nan, inf])
@pytest.mark.parametrize("kind", [Accumulate, Compare])
def test_a_signal_that_is_no_number_computes_and_does_no_harm_afterwards(
    kind: type[Accumulate | Compare], signal: float
) -> None:
    assert computed_steps(kind(guard(), threshold=1), [0, 0.1, signal, 0.1, 0.1]) == [0, 2]


@given(signals, st.integers(0, 4))
def test_never_more_skips_in_a_row_than_allowed(measured: list[float], most: int) -> None:
    steps = computed_steps(Accumulate(guard(), most, threshold=3), measured)
    gaps = np.diff([*steps, len(measured)])
    assert all(gap - 1 <= most for gap in gaps)


@given(signals, st.integers(0, 6))
def test_never_more_skips_in_a_run_than_allowed(measured: list[float], most: int) -> None:
    assert len(measured) - len(computed_steps(Compare(guard(), None, most, threshold=1), measured)) <= most


@given(signals)
def test_a_threshold_of_zero_skips_only_what_has_not_changed(measured: list[float]) -> None:
    skipped = set(range(len(measured))) - set(computed_steps(Compare(guard(), threshold=0), measured))
    assert all(measured[step] == 0 for step in skipped)
    assert computed_steps(Accumulate(guard(), threshold=0), measured) == list(range(len(measured)))


def test_steps_of_a_mask_are_computed_whatever_the_signal() -> None:
    policy = Compare(partial(mask, computed={0, 3}, cooldown=1), threshold=1)
    assert computed_steps(policy, [0, 0, 2, 0, 0, 0, 0]) == [0, 2, 3, 6]


def test_a_skip_that_turned_out_impossible_counts_as_computed() -> None:
    policy = Accumulate(guard(), threshold=1)
    policy.settle(0, computed=True)
    assert policy.decide(1, 9, 0.9) == (False, "threshold reached")
    policy.settle(1, computed=True)
    assert policy.decide(2, 9, 0.9) == (False, "threshold reached")
    policy.settle(2, computed=False)
    assert policy.decide(3, 9, 0.9) == (True, "threshold reached")


def test_a_polynomial_is_never_negative() -> None:
    assert polynomial((1.0, -1.0), 0.5) == 0
    assert polynomial((498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861), 0.0) == 0.264230861


@given(st.lists(st.floats(0.5, 2), min_size=2, max_size=60), st.integers(2, 60))
def test_a_table_for_other_steps_takes_the_nearest(ratios: list[float], total: int) -> None:
    table = stretched(ratios, total)
    assert (len(table), table[0], table[-1]) == (total, ratios[0], ratios[-1])
    assert stretched(ratios, len(ratios)) == tuple(ratios)


def shown(policy: Adaptive, changes: Sequence[float], total: int) -> list[int]:
    """Run a policy that goes by what computed steps show; each changes by so much for every step since the last."""
    steps: list[int] = []
    for index in range(total):
        decision = policy.decide(index, total)
        assert decision is not None
        if decision.compute:
            gap = index - steps[-1] if steps else 1
            change = changes[len(steps)] * gap if steps else None
            policy.observe(Observed(index, (1.0, 1.0), size=1.0, change=change))
            steps.append(index)
        policy.settle(index, decision.compute)
    return steps


def test_a_codebook_tells_how_many_steps_follow_a_computed_one() -> None:
    book = ((0.03, 4), (0.1, 2))
    # The first change that is known is that of the second computed step.
    assert shown(Codebook(guard(), codebook=book), [0, 0.02, 0.05, 0.5, 0.1, 0.01], 14) == [0, 1, 6, 9, 10, 13]


def test_the_branch_that_changes_fastest_speaks_for_all() -> None:
    policy = Codebook(guard(), codebook=((0.1, 3),))
    for index, changes in enumerate([(None, None), (0.05, 0.2)]):
        for change in changes:
            policy.observe(Observed(index, (1.0, 1.0), size=1.0, change=change))
        policy.settle(index, computed=True)
    assert policy.decide(2, 9) == (True, "codebook")


def test_after_a_draft_that_proved_wrong_a_step_is_computed() -> None:
    policy = Verify(guard(), 4, threshold=0.1)
    errors = [0, 0.05, 0.08, 0.2, 0, 0.01, nan, 0, 0, 0, 0, 0, 0]
    steps = []
    for index, error in enumerate(errors):
        decision = policy.decide(index, len(errors))
        assert decision is not None
        if decision.compute:
            steps.append((index, decision.reason))
        else:
            policy.check(index, len(errors), error)
        policy.settle(index, decision.compute)
    assert steps == [(0, "warm-up"), (4, "draft rejected"), (7, "draft rejected"), (12, "max_skips reached")]


def test_the_threshold_of_drafts_falls_over_the_run() -> None:
    policy = Verify(guard(), threshold=0.4, decay=0.25)
    policy.check(5, 10, 0.19)
    assert not policy.rejected
    policy.check(5, 10, 0.21)
    assert policy.rejected
