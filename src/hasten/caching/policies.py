"""Policies: whether a step is computed or skipped.

A policy is a pure function of the step's index and the length of the run, so it can be tested, printed and searched
without any model. All branches of a step share its decision.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple


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
