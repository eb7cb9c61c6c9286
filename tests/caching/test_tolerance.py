"""The policy `tolerance` on analytic flows, where the true error is known: no model in here."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hasten.caching.ledger import SHARE
from hasten.caching.policies import interval
from hasten.caching.predictors import Weights, poly
from hasten.caching.tolerance import Shown, Tolerance, best_shares

Vector = NDArray[np.float64]


class Flow:
    """An exact run: outputs that are known functions of the noise level, and the latent that they come to.

    Args:
        rate: how fast outputs change.
    """

    def __init__(self, steps: int, rate: float = 4.0, seed: int = 0, shift: float = 3.0) -> None:
        even = np.linspace(1, 0, steps + 1)
        levels = shift * even / (1 + (shift - 1) * even)
        self.effects = np.diff(levels)
        self.places = np.concatenate([[0], np.cumsum(np.abs(self.effects))[:-1]])
        rng = np.random.default_rng(seed)
        phases, speeds = rng.uniform(0, 6, 64), rng.uniform(0.2, 1, 64) * rate
        noise = rng.normal(size=64)
        self.outputs = np.cos(speeds * levels[:-1, None] + phases) + noise * np.exp(-rate * (1 - levels[:-1, None]))
        self.final = rng.normal(size=64) + self.effects @ self.outputs

    @property
    def steps(self) -> int:
        return len(self.effects)

    def error(self, mask: list[int], shares: dict[int, Weights], *, corrects: bool) -> float:
        """The true relative error of the final latent."""
        moved = np.zeros_like(self.final)
        for step in range(self.steps):
            if step in mask:
                continue
            before = [anchor for anchor in reversed(mask) if anchor < step]
            after = next((anchor for anchor in mask if step < anchor < self.steps - 1), None)
            error = -self.outputs[step]
            for degree, share in enumerate(shares.get(step, (1.0,))):
                error = error + share * self._stand_in(step, before[: degree + 1])
            if corrects and after is not None:
                left = self._stand_in(step, [after, *before[:2]]) - self.outputs[step]
                error = SHARE * left + (1 - SHARE) * error
            moved += self.effects[step] * error
        return float(np.linalg.norm(moved) / np.linalg.norm(self.final))

    def _stand_in(self, step: int, nodes: list[int]) -> Vector:
        weights = poly([self.places[node] for node in nodes], self.places[step], len(nodes) - 1, 16.0)
        return sum((w * self.outputs[node] for w, node in zip(weights, nodes, strict=False)), np.zeros(64))

    def run(self, tolerance: float, *, corrects: bool = True) -> tuple[list[int], float, float]:
        """The steps that the policy computes, the true error, and what the policy expected of it."""
        guard = partial(interval, interval=None, first_enhance=1, cooldown=1)
        policy = Tolerance(guard, None, None, tolerance=tolerance, corrects=corrects)
        mask: list[int] = []
        shares: dict[int, Weights] = {}
        for step in range(self.steps):
            decision = policy.decide(step, self.steps)
            assert decision is not None
            if decision.compute:
                differences = [self.outputs[node] - self.outputs[step] for node in reversed(mask[-3:])]
                products = [[float((a * b).mean()) for b in differences] for a in differences]
                size = float(np.sqrt(np.square(self.final).mean()))
                policy.learn(Shown(step, self.places, self.effects, products, size))
                mask.append(step)
            else:
                shares[step] = policy.shares or (1.0,)
            policy.settle(step, decision.compute)
        return mask, self.error(mask, shares, corrects=corrects), policy.expected


@pytest.mark.parametrize("steps", [20, 28, 50, 100])
@pytest.mark.parametrize("corrects", [False, True])
@given(seed=st.integers(0, 1000), rate=st.floats(1, 12), tolerance=st.sampled_from([0.01, 0.03, 0.1]))
@settings(max_examples=15, deadline=None)
def test_the_true_error_is_never_far_above_the_tolerance(
    steps: int, corrects: bool, seed: int, rate: float, tolerance: float
) -> None:
    _, error, _ = Flow(steps, rate, seed).run(tolerance, corrects=corrects)
    assert error <= 5 * tolerance


@pytest.mark.parametrize("corrects", [False, True])
@pytest.mark.parametrize("tolerance", [0.01, 0.03, 0.1])
def test_the_true_error_is_usually_within_the_tolerance(tolerance: float, corrects: bool) -> None:
    runs = [Flow(steps, rate, seed) for steps in (20, 28, 50) for rate in (2, 5, 9) for seed in range(8)]
    errors = [flow.run(tolerance, corrects=corrects)[1] for flow in runs]
    assert np.median(errors) <= tolerance
    assert np.quantile(errors, 0.9) <= 1.5 * tolerance


def test_a_tolerance_means_the_same_at_every_number_of_steps() -> None:
    for tolerance in (0.005, 0.02):
        errors = [np.median([Flow(steps, 6, seed).run(tolerance)[1] for seed in range(8)]) for steps in (20, 28, 50)]
        assert max(errors) <= 3 * min(errors)


def test_a_smaller_tolerance_computes_more_and_comes_closer() -> None:
    runs = [Flow(50, 6).run(tolerance) for tolerance in (0.1, 0.03, 0.01, 0.003, 0.001)]
    counts = [len(mask) for mask, _, _ in runs]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert runs[-1][1] < runs[0][1]


def test_equal_gaps_of_as_many_steps_come_less_close() -> None:
    for steps in (20, 28, 50):
        better = 0
        for seed in range(8):
            flow = Flow(steps, 6, seed)
            mask, error, _ = flow.run(0.02)
            even = sorted({round(i * (steps - 1) / (len(mask) - 1)) for i in range(len(mask))})
            better += error < flow.error(even, {}, corrects=True)
        assert better >= 6


def test_a_gap_is_at_most_twice_the_one_before_even_where_nothing_changes() -> None:
    flow = Flow(50)
    flow.outputs[:] = flow.outputs[0]
    mask, error, expected = flow.run(0.001)
    assert mask == [0, 1, 3, 7, 15, 31, 49]
    assert Flow(50).run(0.01)[0][1] == 2
    assert Flow(100).run(0.04)[0][1] == 10
    assert error == pytest.approx(0, abs=1e-9)
    assert expected == pytest.approx(0, abs=1e-6)


def test_without_a_scheduler_every_step_is_computed() -> None:
    policy = Tolerance(partial(interval, interval=None, first_enhance=1, cooldown=0), tolerance=1.0)
    for step in range(6):
        decision = policy.decide(step, 6)
        assert decision is not None
        assert decision.compute
        policy.settle(step, computed=True)
    assert policy.decide(6, 9) == (True, "no step has reached a scheduler yet")


def test_limits_hold_whatever_the_tolerance() -> None:
    flow = Flow(50)
    policy = Tolerance(partial(interval, interval=None, first_enhance=1, cooldown=1), 3, None, tolerance=10.0)
    mask: list[int] = []
    for step in range(50):
        decision = policy.decide(step, 50)
        assert decision is not None
        if decision.compute:
            products = [[0.1 for _ in mask[-3:]] for _ in mask[-3:]]
            policy.learn(Shown(step, flow.places, flow.effects, products, 1.0))
            mask.append(step)
        policy.settle(step, decision.compute)
    assert max(np.diff(mask)) == 4


@pytest.mark.parametrize("size", [0.0, float("nan")])
def test_figures_that_are_none_compute(size: float) -> None:
    flow = Flow(20)
    policy = Tolerance(partial(interval, interval=None, first_enhance=1, cooldown=0), tolerance=0.5, corrects=True)
    policy.learn(Shown(0, flow.places, flow.effects, [], 1.0))
    policy.learn(Shown(2, flow.places, flow.effects, [[size]], size))
    assert policy.decide(3, 20) == (True, "tolerance")
    policy.learn(Shown(3, [0.0] * 20, [0.0] * 20, [[1.0, 1.0], [1.0, 1.0]], 1.0))
    assert policy.decide(4, 20) == (True, "tolerance")


@given(seed=st.integers(0, 10_000), degrees=st.integers(1, 3), together=st.floats(0, 0.99))
def test_no_other_shares_of_the_degrees_leave_less(seed: int, degrees: int, together: float) -> None:
    random = np.random.default_rng(seed)
    errors = random.normal(size=(degrees, 5)) * random.uniform(0.1, 10, size=(degrees, 1))
    errors += together * 20 * random.normal(size=5)
    shares = best_shares((errors @ errors.T).tolist())
    assert min(shares) >= -1e-12
    assert sum(shares) == pytest.approx(1)
    least = np.linalg.norm(random.dirichlet(np.ones(degrees), 500) @ errors, axis=1).min()
    assert np.linalg.norm(np.array(shares) @ errors) <= 1.001 * least
