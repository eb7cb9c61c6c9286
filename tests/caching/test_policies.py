"""Policies decide without any model."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.caching.policies import Policy, every_step, interval, mask, needed

totals = st.integers(1, 60)


def computed_steps(policy: Policy, total: int) -> list[int]:
    return [k for k in range(total) if policy(k, total).compute]


def published_taylorseer_steps(total: int, period: int, first_enhance: int) -> list[int]:
    """The published counter: full while warming up or when the counter has come round."""
    steps, counter = [], 0
    for step in range(total):
        if step < first_enhance or counter == period - 1:
            steps.append(step)
            counter = 0
        else:
            counter += 1
    return steps


def test_the_published_fifty_steps() -> None:
    policy = partial(interval, interval=6, first_enhance=3, cooldown=0)
    assert computed_steps(policy, 50) == [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]


@given(totals, st.integers(1, 9), st.integers(1, 6))
def test_interval_computes_the_published_steps(total: int, period: int, first_enhance: int) -> None:
    policy = partial(interval, interval=period, first_enhance=first_enhance, cooldown=0)
    assert computed_steps(policy, total) == published_taylorseer_steps(total, period, first_enhance)


@given(totals, st.integers(1, 9), st.integers(0, 6), st.integers(0, 4))
def test_first_and_last_steps_are_computed(total: int, period: int, first_enhance: int, cooldown: int) -> None:
    steps = computed_steps(partial(interval, interval=period, first_enhance=first_enhance, cooldown=cooldown), total)
    assert set(range(min(total, max(first_enhance, 1)))) <= set(steps)
    assert set(range(max(total - cooldown, 0), total)) <= set(steps)


def test_an_unknown_length_forces_nothing_at_the_end() -> None:
    assert not interval(9, None, interval=4, first_enhance=1, cooldown=3).compute


def test_reasons_name_the_rule() -> None:
    policy = partial(interval, interval=4, first_enhance=2, cooldown=1)
    assert [policy(k, 9).reason for k in range(9)] == [
        "warm-up", "warm-up", "interval", "interval", "interval", "interval", "interval", "interval", "cool-down",
    ]  # fmt: skip


def test_a_mask_for_a_shorter_run_does_not_leave_the_last_step_out() -> None:
    policy = partial(mask, computed={0, 3, 6}, cooldown=1)
    assert computed_steps(policy, 12) == [0, 3, 6, 11]


def test_a_mask_without_the_first_step_computes_it_all_the_same() -> None:
    assert computed_steps(partial(mask, computed={2}, cooldown=0), 5) == [0, 2]


def test_every_step() -> None:
    assert computed_steps(every_step, 7) == list(range(7))


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 4))
def test_needed_are_exactly_the_steps_that_a_prediction_looks_at(computed: list[bool], snapshots: int) -> None:
    looked_at = set()
    for step, is_computed in enumerate(computed):
        if not is_computed:
            looked_at |= set([k for k in range(step) if computed[k]][-snapshots:])
    assert needed(computed, snapshots) == tuple(k in looked_at for k in range(len(computed)))


@pytest.mark.parametrize("snapshots", [1, 2, 3])
def test_nothing_is_needed_when_nothing_is_skipped(snapshots: int) -> None:
    assert not any(needed([True] * 9, snapshots))
