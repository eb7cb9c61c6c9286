"""What is given up, and in which order, to stay below `cache.size`."""

from __future__ import annotations

import pytest
import torch

from hasten.caching.budget import MIB, Budget
from hasten.caching.resolving import resolve
from hasten.caching.snapshots import History


def budget(floats: int, **cache: object) -> Budget:
    """A ceiling that holds so many float32 numbers, for two snapshots of a branch."""
    return Budget(resolve({"size": floats * 4 / MIB, "order": 1, **cache}))


def values(scale: float = 1.0, floats: int = 8) -> tuple[torch.Tensor, ...]:
    return (torch.full((floats,), scale),)


def test_without_a_ceiling_everything_is_let_in() -> None:
    free = Budget(resolve({}))
    assert free.admit(values(floats=10**6), History(), [], [])[0].dtype is torch.float32
    assert free.notes == []


def test_what_fits_is_left_as_it_is() -> None:
    exact = budget(16)
    assert exact.admit(values(), History(), [], [])[0].dtype is torch.float32
    assert (exact.site, exact.snapshots, exact.notes) == ("residual", 2, [])


def test_first_the_number_format_then_the_site_then_the_number_of_snapshots() -> None:
    tight = budget(8)
    (half,) = tight.admit(values(), History(), [], [])
    assert half.dtype is torch.float16
    tight = budget(7)
    assert tight.admit(values(), History(), [], []) == ()
    assert (tight.site, tight.dtype, tight.snapshots) == ("output", torch.float16, 2)
    (half,) = tight.admit(values(), History(), [], [])
    assert tight.snapshots == 1
    assert len(tight.notes) == 3
    assert all("cache.size" in note for note in tight.notes)


def test_a_span_gives_way_to_the_whole_stack_first() -> None:
    tight = budget(7, site="span", span=(1, 1))
    assert tight.admit(values(), History(), [], []) == ()
    assert tight.site == "residual"


def test_with_no_room_for_one_snapshot_nothing_is_stored() -> None:
    none = budget(3, site="output")
    assert none.admit(values(), History(), [], []) == ()
    assert none.snapshots == 0
    assert "every step is computed" in none.notes[-1]


def test_large_values_are_kept_in_bfloat16() -> None:
    (half,) = budget(8).admit(values(scale=1e5), History(), [], [])
    assert half.dtype is torch.bfloat16


def test_branches_share_the_ceiling_and_are_converted_together() -> None:
    shared = budget(24)
    first = History()
    first.add(0, shared.admit(values(), first, [], []))
    second = History()
    (half,) = shared.admit(values(), second, [first], [])
    assert half.dtype is torch.float16
    assert first.values[0][0].dtype is torch.float16


def test_what_nobody_uses_any_more_goes_first() -> None:
    shared = budget(16)
    done = History()
    done.add(0, shared.admit(values(), done, [], []))
    (full,) = shared.admit(values(), History(), [done], [done])
    assert full.dtype is torch.float32
    assert len(done) == 0
    assert shared.notes == []


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_a_format_that_was_asked_for_is_used_from_the_start(asked: str) -> None:
    (half,) = budget(8, store_dtype=asked).admit(values(), History(), [], [])
    assert half.dtype is {"bf16": torch.bfloat16, "fp16": torch.float16}[asked]
