"""Policies: whether a step is computed or skipped.

A policy is a pure function of the step's index and the length of the run, so it can be tested, printed and searched
without any model. All branches of a step share its decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import NamedTuple

from hasten.errors import CacheError


class Decision(NamedTuple):
    """What a policy says about one step.

    Attributes:
        compute: False to put a prediction in the place of the step's work.
        reason: why, in a word or two, as the report shows it.
    """

    compute: bool
    reason: str


Policy = Callable[[int, int | None], Decision]


def every_step(index: int, total: int | None) -> Decision:
    """Nothing is skipped."""
    return Decision(True, "nothing is to be skipped")


def interval(
    index: int,
    total: int | None,
    *,
    interval: int | None,
    first_enhance: int,
    cooldown: int,
    retention: float = 0.0,
) -> Decision:
    """One step in every `interval`, counted from the last step of the warm-up.

    Args:
        index: the step, from 0.
        total: the number of steps of the run; None when nobody knows it, and then nothing is forced at the end.
        interval: None for no step between warm-up and cool-down.
        first_enhance: so many steps at the start are all computed; the first always is.
        cooldown: so many steps at the end are all computed.
        retention: the warm-up as a share of the run, if that is more than `first_enhance`.

    >>> [k for k in range(16) if interval(k, 16, interval=4, first_enhance=3, cooldown=1).compute]
    [0, 1, 2, 6, 10, 14, 15]
    """
    warm = max(first_enhance, int(retention * (total or 0) + 0.5))
    if index < max(warm, 1):
        return Decision(True, "warm-up" if warm > 0 else "first step")
    if total is not None and index >= total - cooldown:
        return Decision(True, "cool-down")
    if interval is not None and (index - max(warm, 1) + 1) % interval == 0:
        return Decision(True, "interval")
    return Decision(False, "interval")


def quadratic(
    index: int, total: int | None, *, every: int, center: int, power: float, first_enhance: int, cooldown: int
) -> Decision:
    """As many steps as one in `every`, gathered around one of them: DeepCache's non-uniform schedule.

    Args:
        center, power: see `quadratic_steps`.
        total: the number of steps of the run; where nobody knows it, the steps are spread evenly.

    Raises:
        CacheError: no such schedule exists in a run of this length.
    """
    if total is None or index < first_enhance or index >= total - cooldown:
        return interval(index, total, interval=every, first_enhance=first_enhance, cooldown=cooldown)
    computed = index in quadratic_steps(total, -(-total // every), center, power)
    return Decision(computed, "first step" if index == 0 else "schedule")


@cache
def quadratic_steps(total: int, count: int, center: int, power: float) -> tuple[int, ...]:
    """`count` computed steps of `total`, the closer together the nearer they are to `center`.

    `⌊l^p⌋ + c` for `count + 1` numbers l spread evenly from `(−c)^(1/p)` to `(T − c)^(1/p)`, without the two at the
    ends and with step 0. What lies before the centre are powers of complex numbers, of which the real part is taken.
    As in the published code, p falls by 0.02 until no two of them are the same step.

    Ma et al. 2023, arXiv 2312.00858, section 4.3.

    >>> quadratic_steps(50, 10, 15, 1.4)
    (0, 5, 9, 13, 17, 21, 26, 31, 37, 43)
    """
    while power > 1 and center < total:
        first, last = complex(-center) ** (1 / power), complex(total - center) ** (1 / power)
        levels = [first + (last - first) * place / count for place in range(count + 1)]
        steps = sorted({int((level**power).real) for level in levels})
        if len(steps) == count + 1:
            return (0, *(step + center for step in steps[1:-1]))
        power -= 0.02
    raise CacheError(
        f"cache.center: {count} computed steps of {total} cannot be gathered around step {center}; "
        "allowed are a step nearer to the middle, or a larger interval"
    )


def mask(index: int, total: int | None, *, computed: Collection[int], cooldown: int) -> Decision:
    """The steps that are named, the first, and the last `cooldown`.

    A mask that was made for a shorter run would otherwise leave the last step of a longer one to a prediction.

    >>> [k for k in range(8) if mask(k, 8, computed={0, 3}, cooldown=1).compute]
    [0, 3, 7]
    """
    if index in computed:
        return Decision(True, "mask")
    if index == 0:
        return Decision(True, "first step")
    if total is not None and index >= total - cooldown:
        return Decision(True, "cool-down")
    return Decision(False, "mask")


def planned(index: int, total: int | None, *, steps: Callable[[int], tuple[int, ...]], cooldown: int) -> Decision:
    """The steps of a mask that follows from the length of the run, and the last `cooldown`.

    Args:
        steps: gives the steps to compute, for a number of steps; see `masks`.
    """
    if total is None:
        return Decision(True, "nobody knows how many steps there are")
    return mask(index, total, computed=steps(total), cooldown=cooldown)


def gate(
    index: int, total: int | None, *, gate_step: int, interval: int | None, after: int | None, first_enhance: int
) -> Decision:
    """T-GATE's two phases: one interval before a step and another one from it on.

    Zhang et al. 2024, arXiv 2404.02747. The step right before the gate is computed, whatever the intervals say.

    Args:
        gate_step: the first step of the second phase.
        interval, after: steps whose index is a multiple of it are computed, of the first and of the second phase;
            None for no step.
        first_enhance: so many steps at the start are all computed.

    >>> [k for k in range(14) if gate(k, 14, gate_step=10, interval=5, after=None, first_enhance=3).compute]
    [0, 1, 2, 5, 9]
    """
    if index < max(first_enhance, 1):
        return Decision(True, "warm-up" if first_enhance > 0 else "first step")
    every = interval if index < gate_step else after
    if index == gate_step - 1 or (every is not None and index % every == 0):
        return Decision(True, "gate" if index == gate_step - 1 else "interval")
    return Decision(False, "gate" if index >= gate_step else "interval")


def between(decision: Decision, timestep: float | None, timesteps: tuple[float, float]) -> Decision:
    """Skip only where the timestep lies strictly between two bounds.

    Args:
        timestep: on the scale from 0 to 1000; None where nobody knows it, and then the step is computed.

    >>> between(Decision(False, "interval"), 800.0, (100, 800))
    Decision(compute=True, reason='outside of cache.timesteps')
    """
    if decision.compute:
        return decision
    if timestep is None:
        return Decision(True, "no timestep is known")
    return decision if timesteps[0] < timestep < timesteps[1] else Decision(True, "outside of cache.timesteps")


def needed(computed: Sequence[bool], snapshots: int) -> tuple[bool, ...]:
    """Which computed steps a later prediction will look at; the others need not be stored.

    Args:
        computed: per step of the run, whether it is computed.
        snapshots: how many of the last computed steps a prediction looks at.

    >>> needed([True, True, True, False, True, True], 2)
    (False, True, True, False, False, False)
    """
    wanted = [False] * len(computed)
    anchors: list[int] = []
    for index, is_computed in enumerate(computed):
        if is_computed:
            anchors.append(index)
        else:
            for anchor in anchors[-snapshots:]:
                wanted[anchor] = True
    return tuple(wanted)
