"""Step masks that follow from the length of a run."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.caching.masks import BinsName, binned, geometric, widening
from hasten.caching.policies import planned
from hasten.caching.resolving import resolve

NAMES: tuple[BinsName, ...] = ("slow", "medium", "fast", "ultra")


def marks(steps: tuple[int, ...], total: int) -> str:
    return "".join("C" if k in steps else "s" for k in range(total))


# Masks that were searched for by others, with 9, 13 and 13 computed steps of 50 (METHODS.md, 2.9).
SEARCHED = (
    (0, 1, 2, 3, 5, 8, 13, 27, 49),
    (0, 1, 2, 3, 5, 9, 17, 31, 49),
    (0, 1, 2, 3, 5, 8, 13, 40, 49),
    (0, 1, 2, 3, 4, 6, 8, 10, 14, 19, 30, 43, 49),
    (0, 1, 2, 3, 4, 5, 6, 8, 9, 12, 22, 41, 49),
    (0, 1, 2, 3, 4, 5, 6, 8, 10, 14, 23, 37, 49),
)


@pytest.mark.parametrize("mask", SEARCHED)
def test_the_geometric_mask_is_close_to_those_that_were_searched(mask: tuple[int, ...]) -> None:
    found = geometric(50, len(mask))
    assert sum(abs(a - b) for a, b in zip(found, mask, strict=True)) / len(mask) < 2.6
    even = [round(49 * i / (len(mask) - 1)) for i in range(len(mask))]
    assert sum(abs(a - b) for a, b in zip(found, mask, strict=True)) * 4 < sum(
        abs(a - b) for a, b in zip(even, mask, strict=True)
    )


@given(st.integers(2, 120), st.integers(2, 120), st.none() | st.floats(1.01, 4))
def test_a_geometric_mask_has_its_budget_and_both_ends(total: int, budget: int, power: float | None) -> None:
    steps = geometric(total, budget, power)
    assert len(steps) == min(budget, total)
    assert all(a < b for a, b in pairwise(steps))
    assert (steps[0], steps[-1]) == (0, total - 1)


def test_a_geometric_mask_is_its_formula_where_that_increases() -> None:
    assert geometric(50, 5, 2.0) == tuple(round(49 * (i / 4) ** 2) for i in range(5))
    assert geometric(100, 4, 1.5) == tuple(round(99 * (i / 3) ** 1.5) for i in range(4))


@pytest.mark.parametrize(("name", "computed"), [("slow", 18), ("medium", 15), ("fast", 11), ("ultra", 8)])
def test_the_published_masks_of_28_steps(name: BinsName, computed: int) -> None:
    assert len(binned(28, name)) == computed


def test_published_masks_of_other_lengths() -> None:
    assert marks(binned(28, "slow"), 28) == "CCCCCCCCsCCCssCCCssCCssCsssC"
    assert marks(binned(28, "ultra"), 28) == "CCCCssCsssssCssssssCsssssssC"
    # stretched: in one round of 50 steps each bin grows by int(bin · 50/28 / 2), at least 1, which makes 47; then the
    # first bin grows once more, and four are taken away at the end
    assert marks(binned(50, "slow"), 50) == "C" * 22 + "ss" + "CCCCCsss" * 2 + "CCCsss" + "CCsC"
    # shortened: from the end, a skipped and a computed step in turn
    assert marks(binned(24, "fast"), 24) == "CCCCCCsCsssCssssCssssssC"
    assert marks(binned(15, "slow"), 15) == "CCCCsCCsCCsCCsC"
    assert marks(binned(9, "medium"), 9) == "CCCCCsCsC"
    assert marks(binned(8, "fast"), 8) == "CCCsCssC"
    assert marks(binned(6, "ultra"), 6) == "CCCssC"
    assert marks(binned(4, "slow"), 4) == "CCsC"


@given(st.integers(1, 300), st.sampled_from(NAMES))
def test_a_mask_of_bins_fits_every_run(total: int, name: BinsName) -> None:
    steps = binned(total, name)
    assert all(a < b for a, b in pairwise(steps))
    assert (steps[0], steps[-1]) == (0, total - 1)


@given(st.integers(1, 300))
def test_slower_masks_compute_more(total: int) -> None:
    counts = [len(binned(total, name)) for name in NAMES]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(("growth", "computed"), [(0.75, 14), (3.0, 10)])
def test_the_published_budgets_of_the_widening_window(growth: float, computed: int) -> None:
    steps = widening(50, 2, growth, 5)
    assert steps[:6] == (0, 1, 2, 3, 4, 6)
    assert len(steps) == computed
    settings = resolve({"method": "spectrum", "growth": growth, "cooldown": 0})
    assert [k for k in range(50) if settings.fixed(k, 50).compute] == list(steps)


def test_without_growth_a_window_is_an_interval() -> None:
    assert widening(20, 4, 0, 2) == (0, 1, 5, 9, 13, 17)


def test_a_mask_of_a_run_whose_length_nobody_knows_skips_nothing() -> None:
    assert planned(7, None, steps=lambda total: (0,), cooldown=0).compute
    assert not planned(7, 9, steps=lambda total: (0,), cooldown=0).compute


@pytest.mark.parametrize(
    ("section", "computed"),
    [
        ({"policy": "geometric", "budget": 9}, geometric(50, 9)),
        ({"budget": 13, "power": 3.0}, geometric(50, 13, 3.0)),
        ({"bins": "fast"}, binned(50, "fast")),
        ({"policy": "window", "first_enhance": 2, "cooldown": 0}, widening(50, 2, 0.75, 2)),
    ],
)
def test_a_plan_names_them(section: dict[str, object], computed: tuple[int, ...]) -> None:
    settings = resolve(section)
    assert tuple(k for k in range(50) if settings.fixed(k, 50).compute) == computed
