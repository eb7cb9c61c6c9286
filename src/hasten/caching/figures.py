"""Figures: what was measured of a branch of a denoiser in full runs, for the methods that need it. No torch in here."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import exp, log

from hasten.caching.adaptive import polynomial


@dataclass(frozen=True)
class Figures:
    """What was measured of one branch, step by step.

    Attributes:
        sigmas: the noise level of each step of the measured runs, in their order.
        ratios: the size of the cached residual by that of the step before; 1 for the first step.
        polynomial: the output's change as a function of the modulated input's, highest power first; empty if there is
            no such function.
        fitted: the least and the largest change that it was fitted to.
    """

    sigmas: tuple[float, ...]
    ratios: tuple[float, ...]
    polynomial: tuple[float, ...] = ()
    fitted: tuple[float, float] = (0.0, 0.0)

    def ratios_at(self, sigmas: Sequence[float]) -> tuple[float, ...]:
        """The ratios for another schedule: the size is interpolated over the noise level, in its logarithm.

        Args:
            sigmas: the noise levels of a run's steps; empty for the measured ones.

        >>> Figures((4.0, 2.0, 1.0), (1.0, 2.0, 4.0)).ratios_at((4.0, 1.0))
        (1.0, 8.0)
        """
        if not sigmas:
            return self.ratios
        sizes = tuple(accumulate(map(log, self.ratios)))
        found = [_interpolated(sigma, self.sigmas, sizes) for sigma in sigmas]
        return (1.0, *(_rounded(exp(after - before)) for before, after in pairwise(found)))

    def rescale(self, signal: float) -> float:
        """The output's change that goes with a signal; in proportion to it outside of what was measured."""
        low, high = self.fitted
        inside = min(max(signal, low), high)
        return polynomial(self.polynomial, inside) * (signal / inside if inside else 1.0)


ByBranch = Mapping[str, Figures]


def figures_for(branch: str, known: ByBranch) -> Figures | None:
    """Those of a branch; of the first one where it was not measured."""
    return known.get(branch) or next(iter(known.values()), None)


def _rounded(value: float) -> float:
    return round(value, 12)


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """The polygon through points whose xs go one way; constant beyond its ends."""
    if len(xs) > 1 and xs[0] > xs[-1]:
        xs, ys = xs[::-1], ys[::-1]
    right = bisect_left(xs, x)
    if right == 0:
        return ys[0]
    if right == len(xs):
        return ys[-1]
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])
