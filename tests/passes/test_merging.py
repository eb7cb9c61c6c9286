"""The mathematics of token merging: what is left alone comes back untouched, what is merged as its group's mean."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.passes.merging import match, split

grids = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(2, 6))
strides = st.tuples(st.integers(1, 3), st.integers(1, 3)).filter(lambda stride: prod(stride) > 1)


@settings(max_examples=40, deadline=None)
@given(grids, strides, st.booleans())
def test_every_whole_cell_has_one_destination(
    grid: tuple[int, int, int], stride: tuple[int, int], is_random: bool
) -> None:
    generator = torch.Generator().manual_seed(0) if is_random else None
    sources, destinations = split(grid, stride, generator)
    high, wide = stride if grid[1] > 1 else (1, prod(stride))
    assert sorted([*sources.tolist(), *destinations.tolist()]) == list(range(prod(grid)))
    cells = {
        (place // (grid[1] * grid[2]), place // grid[2] % grid[1] // high, place % grid[2] // wide)
        for place in destinations.tolist()
    }
    assert len(cells) == len(destinations) == grid[0] * (grid[1] // high) * (grid[2] // wide)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(2, 6), st.integers(2, 6), st.data())
def test_merging_and_unmerging_averages_groups_and_leaves_the_others(
    batch: int, rows: int, columns: int, data: st.DataObject
) -> None:
    parts = split((1, rows, columns), (2, 2))
    count = data.draw(st.integers(0, len(parts.sources)))
    x = torch.randn(batch, rows * columns, 3, generator=torch.Generator().manual_seed(rows * 10 + columns))
    found = match(x, parts, count)
    merged = found.merge(x)
    back = found.unmerge(merged)
    assert merged.shape == (batch, rows * columns - count, 3)
    for sample in range(batch):
        for slot in range(merged.shape[1]):
            group = (found.into[sample] == slot).nonzero().flatten()
            assert torch.allclose(merged[sample, slot], x[sample, group].mean(0), atol=1e-6)
            assert torch.equal(back[sample, group], merged[sample, slot].expand(len(group), -1))
            if len(group) == 1:
                assert torch.equal(back[sample, group], x[sample, group])
    assert sum(len(set(row)) for row in found.into.tolist()) == batch * merged.shape[1]


def test_the_most_similar_are_merged() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.1], [0.99, 0.01]]])
    found = match(x, split((1, 1, 4), (2, 2)), 1)
    assert found.merged.tolist() == [[3]]
    assert torch.allclose(found.merge(x)[0, -1], torch.tensor([0.995, 0.005]))


def test_samples_can_share_a_matching() -> None:
    x = torch.randn(3, 16, 4, generator=torch.Generator().manual_seed(0))
    found = match(x, split((1, 4, 4), (2, 2)), 6, shared=True)
    assert all(torch.equal(row, found.into[0]) for row in found.into)


def test_random_destinations_are_those_of_their_generator() -> None:
    first, again, other = (split((1, 8, 8), (2, 2), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.destinations, again.destinations)
    assert not torch.equal(first.destinations, other.destinations)


@pytest.mark.peer
def test_it_merges_what_tomesd_merges() -> None:
    tomesd = pytest.importorskip("tomesd")
    x = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0))
    merge, unmerge = tomesd.merge.bipartite_soft_matching_random2d(x, 8, 5, 2, 2, 17, no_rand=True)
    found = match(x, split((1, 5, 8), (2, 2)), 17)
    assert torch.allclose(found.unmerge(found.merge(x)), unmerge(merge(x)), atol=1e-6)
