"""Two frequency bands: which frequencies are low, and where the grid is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hasten.caching.bands import LowBand, grid_for, grids_of, low_pass
from hasten.caching.snapshots import History


def wave(grid: tuple[int, ...], cycles: tuple[int, ...]) -> Tensor:
    """(1, tokens, 2): a plane wave over a grid of tokens, row by row."""
    axes = torch.meshgrid(*(torch.arange(size) / size for size in grid), indexing="ij")
    phase = sum(2 * math.pi * count * axis for count, axis in zip(cycles, axes, strict=True))
    assert isinstance(phase, Tensor)
    return torch.stack([phase.cos().flatten(), phase.sin().flatten()], dim=-1)[None]


@pytest.mark.parametrize(
    ("cycles", "is_low"), [((0, 0), True), ((0, 1), True), ((1, 0), True), ((1, 1), False), ((0, 2), False)]
)
def test_with_a_grid_frequencies_are_those_of_height_and_width(cycles: tuple[int, int], is_low: bool) -> None:
    value = wave((20, 20), cycles)
    low = low_pass(value, 0.1, [(20, 20)])  # up to one cycle over the 20 tokens of an axis
    assert torch.allclose(low, value if is_low else torch.zeros(()), atol=1e-5)


def test_without_a_grid_tokens_are_a_line() -> None:
    value = wave((40,), (2,))
    assert torch.allclose(low_pass(value, 0.1), value, atol=1e-5)
    assert torch.allclose(low_pass(wave((40,), (3,)), 0.1), torch.zeros(()), atol=1e-5)
    # One row up and down: slow along the rows, and yet fast along the line of tokens.
    vertical = wave((20, 20), (1, 0))
    assert torch.allclose(low_pass(vertical, 0.004), torch.zeros(()), atol=1e-5)


def test_latents_are_filtered_over_their_last_two_dimensions_frame_by_frame() -> None:
    flat = wave((20, 20), (0, 1))[0].T.reshape(2, 20, 20)
    video = torch.stack([flat, -flat, 3 * flat], dim=1)[None]  # (1, 2, 3, 20, 20): frames differ wildly
    assert torch.allclose(low_pass(video, 0.1), video, atol=1e-5)
    frames = torch.cat([wave((20, 20), (0, 1)), -wave((20, 20), (0, 1))], dim=1)
    assert torch.allclose(low_pass(frames, 0.1, [(2, 20, 20)]), frames, atol=1e-5)


def test_the_two_bands_add_up_and_odd_sizes_and_half_precision_are_fine() -> None:
    for shape, grids in (((2, 35, 3), [(5, 7)]), ((2, 35, 3), []), ((1, 4, 7, 5), [])):
        value = torch.randn(shape)
        low = low_pass(value, 0.3, grids)
        assert low.shape == value.shape
        assert torch.allclose(low_pass(low, 0.3, grids), low, atol=1e-5)  # a projection
        assert low_pass(value.bfloat16(), 0.3, grids).dtype is torch.bfloat16
        assert (low_pass(value - low, 0.3, grids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("arguments", "tokens", "grid"),
    [
        ({"img_shapes": [[(1, 4, 6)]]}, 24, (1, 4, 6)),  # Qwen-Image
        ({"hidden_states": torch.zeros(1, 8, 8, 12)}, 24, (4, 6)),  # latents, patches of two
        ({"hidden_states": torch.zeros(1, 8, 3, 8, 12)}, 3 * 24, (3, 4, 6)),  # video
        ({"hidden_states": torch.zeros(1, 8, 4, 8, 12)}, 2 * 24, (2, 4, 6)),  # patches of two frames
        ({"img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(6.0))}, 24, (4, 6)),  # FLUX
        ({"hidden_states": torch.zeros(1, 24, 16), "timestep": torch.zeros(1)}, 24, ()),
        ({"hidden_states": torch.zeros(1, 8, 8, 12)}, 25, ()),
    ],
)
def test_the_grid_is_read_off_the_arguments(arguments: dict[str, object], tokens: int, grid: tuple[int, ...]) -> None:
    assert grid_for(torch.zeros(1, tokens, 5), grids_of((), arguments)) == grid
    assert grid_for(torch.zeros(1, tokens, 5), grids_of((next(iter(arguments.values())),), {})) == grid


def test_each_band_is_predicted_with_its_own_weights() -> None:
    old, new = torch.randn(2, 1, 24, 3)
    kept = History()
    kept.add(0, (old,))
    kept.add(1, (new,))
    high, low, grids = (2.0, -1.0), (1.0,), ((4, 6),)

    def bands(value: Tensor) -> tuple[Tensor, Tensor]:
        slow = low_pass(value, 0.4, grids)
        return slow, value - slow

    base = torch.randn(1, 24, 3)
    expected = base + bands(new)[0] + 2 * bands(new)[1] - bands(old)[1]
    predicted = kept.predict(high, 0, base, torch.float32, LowBand(low, 0.4, grids))
    assert torch.allclose(predicted, expected, atol=1e-5)
    # Equal weights need no transform, bit for bit.
    same = kept.predict(high, 0, base, torch.float32, LowBand(high, 0.4, grids))
    assert torch.equal(same, kept.predict(high, 0, base, torch.float32))
