"""Percentiles, bootstrap intervals of ratios, and the Pareto line: pure functions of numbers.

Intervals are 95 % intervals. The bootstrap's own are too narrow for the three to ten timings that a benchmark has: with
n values they lack the factor √(n/(n-1)), and the normal quantile in place of Student's t (Hesterberg 2015, "What
teachers should know about the bootstrap"). Here its quantiles are stretched by both, so that two runs of the same thing
are called different about as rarely as promised.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
_NORMAL = 1.959964
# Student's t at 97.5 %, for 1, 2, … degrees of freedom; beyond the table the next lower entry is on the safe side.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Interval(NamedTuple):
    """An estimate with its 95 % interval. One value alone has none: low and high are None."""

    value: float
    low: float | None
    high: float | None

    def excludes(self, value: float) -> bool:
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of all values lies, interpolated between neighbours.

    Args:
        values: at least one, in any order.
        share: from 0 to 1.
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    # Not a·(1 − w) + b·w: where a = b that may differ from both in the last bit.
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def stretch(count: int) -> float:
    """How much wider than the bootstrap's the interval of so many values has to be."""
    return _T[min(count - 1, len(_T)) - 1] / _NORMAL * math.sqrt(count / (count - 1))


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """The median of ratios of values that were measured in pairs, one after the other.

    A pair is resampled as a whole, so that what slowed both down alike (a warm machine) widens nothing.

    Args:
        numerators, denominators: positive, of the same length, at least one.
        seed: of the resampling; the same numbers give the same interval.
    """
    logs = np.log(np.asarray(numerators, float)) - np.log(np.asarray(denominators, float))
    return _exp(_interval(float(np.median(logs)), _medians(logs, seed), len(logs)))


def ratio(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Interval:
    """The ratio of the medians of two samples that were measured apart, each resampled by itself.

    Args:
        numerators, denominators: positive, at least one each.
    """
    above, below = np.log(np.asarray(numerators, float)), np.log(np.asarray(denominators, float))
    centre = float(np.median(above) - np.median(below))
    spread = _medians(above, seed) - _medians(below, seed + 1)
    return _exp(_interval(centre, spread, min(len(above), len(below))))


def ratio_of_paired_ratios(
    first: tuple[Sequence[float], Sequence[float]], second: tuple[Sequence[float], Sequence[float]], seed: int = 0
) -> Interval:
    """How one speed-up relates to another that was measured in another run: `paired_ratio(*first)` over the second's.

    Args:
        first, second: (numerators, denominators) as for `paired_ratio`.
    """
    logs = [np.log(np.asarray(a, float)) - np.log(np.asarray(b, float)) for a, b in (first, second)]
    centre = float(np.median(logs[0]) - np.median(logs[1]))
    spread = _medians(logs[0], seed) - _medians(logs[1], seed + 1)
    return _exp(_interval(centre, spread, min(map(len, logs))))


def mean(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of values, such as the differences of two measurements of the same images."""
    array = np.asarray(values, float)
    chosen = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    return _interval(float(array.mean()), array[chosen].mean(axis=1), len(array))


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats, by growing x: higher is better in both, and equal points all stay."""
    kept = [
        index
        for index, (x, y) in enumerate(points)
        if not any((a >= x and b > y) or (a > x and b >= y) for a, b in points)
    ]
    return sorted(kept, key=lambda index: points[index])


def _medians(values: np.ndarray, seed: int) -> np.ndarray:
    chosen = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    resampled: np.ndarray = np.median(values[chosen], axis=1)
    return resampled


def _interval(centre: float, resampled: np.ndarray, count: int) -> Interval:
    if count < 2:
        return Interval(centre, None, None)
    low, high = np.quantile(resampled, (0.025, 0.975))
    factor = stretch(count)
    # A resampled median may lie on one side of the centre only; the interval holds its own estimate all the same.
    return Interval(
        centre,
        min(centre, centre + factor * (float(low) - centre)),
        max(centre, centre + factor * (float(high) - centre)),
    )


def _exp(interval: Interval) -> Interval:
    low, high = (None if end is None else math.exp(end) for end in (interval.low, interval.high))
    return Interval(math.exp(interval.value), low, high)
