"""How many steps a run is to have, and where the remaining ones lie: pure functions of numbers.

The remaining schedule keeps its course: it is the old one read at other places, from the noise level that the run is
at to the same end.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, floor, log


def steps_for(score: float, *, low: float, high: float, fewest: int, most: int) -> int:
    """The number of steps for a score: `fewest` up to `low`, `most` from `high` on, evenly in between.

    >>> [steps_for(score, low=1, high=3, fewest=20, most=50) for score in (0, 1, 2, 3, 9)]
    [20, 20, 35, 50, 50]
    """
    if not score < high:  # NaN, too: a run that is lost anyway is not hurried
        return most
    share = 0.0 if score <= low else (score - low) / (high - low)
    return floor(fewest + share * (most - fewest) + 0.5)


def places(done: int, total: int, steps: int) -> list[float]:
    """Where the remaining steps begin on the old schedule, evenly spread; the first is where the run is.

    Args:
        done: steps that are behind.
        total: of the old schedule.
        steps: that remain, from 1 to `total − done`.

    >>> places(10, 50, 16)[:3]
    [10.0, 12.5, 15.0]
    """
    return [done + (total - done) * step / steps for step in range(steps)]


def read(values: Sequence[float], place: float) -> float:
    """A list of numbers between its entries: at 2.5 half of those at 2 and at 3."""
    index = min(max(floor(place), 0), len(values) - 1)
    share = place - index
    return values[index] if share <= 0 or index + 1 == len(values) else _mix(values[index], values[index + 1], share)


def respaced(
    timesteps: Sequence[float],
    sigmas: Sequence[float],
    done: int,
    steps: int,
    *,
    whole: bool,
    training: Sequence[float] = (),
) -> tuple[list[float], list[float]]:
    """Timesteps and sigmas of a schedule whose first `done` entries stay, and whose rest has `steps` entries.

    Args:
        timesteps: of the old schedule, falling.
        sigmas: the noise level at each of them.
        whole: timesteps are whole numbers.
        training: the sigma at each timestep of the training, where sigma is no straight line over the timesteps: what
            lies between two entries then follows that curve.
    """
    here = places(done, len(timesteps), steps)
    moved = [read(timesteps, place) for place in here]
    if whole:
        moved = [float(floor(timestep + 0.5)) for timestep in moved]
    if not training:
        return [*timesteps[:done], *moved], [*sigmas[:done], *(read(sigmas, place) for place in here)]
    curve = [log(max(sigma, 1e-8)) for sigma in training]
    # A scheduler may hold sigmas beside the curve, by a little (rounded timesteps): that little is read between, too.
    apart = [log(max(sigma, 1e-8)) - read(curve, timestep) for timestep, sigma in zip(timesteps, sigmas, strict=True)]
    levels = [exp(read(curve, timestep) + read(apart, place)) for timestep, place in zip(moved, here, strict=True)]
    return [*timesteps[:done], *moved], [*sigmas[:done], sigmas[done], *levels[1:]]


def _mix(a: float, b: float, share: float) -> float:
    return a + share * (b - a)
