"""Step masks: sets of steps to compute that follow from the length of a run. No torch in here."""

from __future__ import annotations

from itertools import zip_longest
from typing import Literal

BinsName = Literal["slow", "medium", "fast", "ultra"]
Bins = tuple[tuple[int, ...], tuple[int, ...]]
"""How many steps in a row are computed, and how many are skipped after each of these."""

# The predefined masks of cache-dit (Apache-2.0), from https://github.com/vipshop/cache-dit: for 28 steps, and for the
# few of distilled models.
_MANY: dict[BinsName, Bins] = {
    "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}
_FEW: dict[BinsName, Bins] = {
    "slow": ((4, 2, 2, 2, 1), (1, 1, 1, 1)),
    "medium": ((4, 2, 1, 1, 1), (1, 1, 2, 2)),
    "fast": ((3, 1, 1, 1, 1), (1, 2, 2, 3)),
    "ultra": ((2, 1, 1, 1, 1), (1, 2, 3, 3)),
}
_NINE: dict[BinsName, Bins] = {
    "slow": ((5, 2, 1), (1,)),
    "medium": ((5, 1, 1), (1, 1)),
    "fast": ((4, 1, 1), (1, 2)),
    "ultra": ((3, 1, 1), (2, 2)),
}
_EIGHT: dict[BinsName, Bins] = {
    "slow": ((5, 1, 1), (1,)),
    "medium": ((4, 1, 1), (1, 1)),
    "fast": ((3, 1, 1), (1, 2)),
    "ultra": ((2, 1, 1), (2, 2)),
}
_USUAL = 28


def geometric(total: int, budget: int, power: float | None = None) -> tuple[int, ...]:
    """`budget` steps with growing gaps: `k_i = round((total − 1)·(i/(budget − 1))^power)`, made strictly increasing.

    Searched masks look like this: dense at the start, sparse in the end, and the last step computed. Without a power,
    it is `1 + 0.44·total/budget`, which runs through the powers that fit the searched masks of 50 steps best (3.4 for
    9 computed steps, 2.7 for 13, 2.0 for 21).

    >>> geometric(50, 9)
    (0, 1, 2, 3, 5, 10, 18, 31, 49)
    """
    if budget >= total:
        return tuple(range(total))
    if budget == 1:
        return (0,)
    power = 1 + 0.44 * total / budget if power is None else power
    steps: list[int] = []
    for i in range(budget):
        wanted = round((total - 1) * (i / (budget - 1)) ** power)
        earliest = steps[-1] + 1 if steps else 0
        steps.append(min(max(wanted, earliest), total - budget + i))
    return tuple(steps)


def binned(total: int, name: BinsName) -> tuple[int, ...]:
    """One of the step masks of cache-dit's DBCache for a run of any length; the last step is computed.

    For 28 steps the mask is a table. More steps stretch it, 16 to 27 shorten it from its end, and for fewer there are
    tables of their own. Below eight, all names are the same mask.

    >>> len(binned(28, "medium")), binned(8, "ultra")
    (15, (0, 1, 4, 7))
    """
    if total < 8:
        skipped = max(total // 2 - 1, 0)
        return (*range(total - 1 - skipped), *range(max(total - 1, 0), total))
    table = _EIGHT if total == 8 else _NINE if total == 9 else _FEW if total < 16 else _MANY
    compute, skip = map(list, table[name])
    if total > _USUAL:
        _stretch(compute, skip, total)
    _shorten(compute, skip, total)
    steps, at = {total - 1}, 0
    for computed, skipped in zip_longest(compute, skip, fillvalue=0):
        steps.update(range(at, at + computed))
        at += computed + skipped
    return tuple(sorted(steps))


def widening(total: int, first: float, growth: float, warm: int) -> tuple[int, ...]:
    """After a warm-up, gaps that begin with `first` and grow by `growth` after each computed step (Spectrum).

    >>> len(widening(50, 2, 0.75, 5)), len(widening(50, 2, 3.0, 5))
    (14, 10)
    """
    steps = list(range(min(max(warm, 1), total)))
    gap = first
    while steps[-1] + int(gap) < total:
        steps.append(steps[-1] + int(gap))
        gap += growth
    return tuple(steps)


def _stretch(compute: list[int], skip: list[int], total: int) -> None:
    """Let all bins grow by half of what they were for each 28 steps of the run, in turn, until they cover it."""
    pairs = [(kind, i) for i in range(len(skip)) for kind in (compute, skip)]
    growths = [max(int(kind[i] * total / _USUAL / 2), 1) for kind, i in pairs]
    while True:
        for (kind, i), growth in zip([*pairs, (compute, -1)], [*growths, 1], strict=True):
            if sum(compute) + sum(skip) >= total:
                return
            kind[i] += growth


def _shorten(compute: list[int], skip: list[int], total: int) -> None:
    """Take steps away from the end, from the skipped and the computed ones in turn."""
    for turn in range(sum(compute) + sum(skip) - total):
        kind = skip if turn % 2 == 0 and skip else compute
        kind[-1] -= 1
        if kind[-1] == 0:
            kind.pop()
