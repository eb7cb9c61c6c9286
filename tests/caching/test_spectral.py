"""What of a noisy latent is picture, by frequency."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tiny
from hasten.caching.spectral import filtered


def wave(cycles: int, size: int = 16) -> Tensor:
    """So many waves over the width of a picture."""
    across = torch.cos(2 * math.pi * cycles * torch.arange(size) / size)
    return across.expand(1, 3, size, size)


def gain(cycles: int, noise: float) -> float:
    value = wave(cycles)
    found = filtered(value, 1 - noise, noise)
    assert found is not None
    assert torch.allclose(found, value * (found.norm() / value.norm()), atol=1e-4)
    return float(found.norm() / value.norm())


def test_without_noise_a_latent_is_what_it_was() -> None:
    value = tiny.noise(2, 3, 8, 6)
    found = filtered(value, 1.0, 0.0)
    assert found is not None
    assert torch.allclose(found, value, atol=1e-4)


@pytest.mark.parametrize("noise", [0.2, 0.5, 0.9])
def test_a_wave_passes_as_the_wiener_filter_says(noise: float) -> None:
    """Up and down there is no wave, so that only the way across tells waves apart."""

    def wiener(cycles: int) -> float:
        power = 1 / ((cycles / 16) ** 2 + 1e-16)
        return (1 - noise) * power / ((1 - noise) ** 2 * power + noise**2)

    assert gain(6, noise) / gain(1, noise) == pytest.approx(wiener(6) / wiener(1), rel=1e-3)
    assert gain(6, noise) < gain(1, noise)


def test_more_noise_leaves_less_of_high_frequencies() -> None:
    shares = [gain(7, noise) / gain(1, noise) for noise in (0.1, 0.4, 0.8, 0.99)]
    assert shares == sorted(shares, reverse=True)


def test_tokens_count_where_they_lie() -> None:
    value = tiny.noise(2, 4, 6, 8)
    tokens = value.flatten(2).transpose(1, 2)
    picture, line = filtered(value, 0.3, 0.7), filtered(tokens, 0.3, 0.7, [(6, 8)])
    assert picture is not None
    assert line is not None
    assert torch.allclose(line.movedim(-1, 1), picture, atol=1e-5)
    assert filtered(tokens, 0.3, 0.7) is None


def test_a_film_has_frequencies_in_time() -> None:
    still, flicker = torch.ones(1, 2, 4, 6, 6), torch.ones(1, 2, 4, 6, 6)
    flicker[:, :, ::2] = -1
    one, other = filtered(still, 0.2, 0.8), filtered(flicker, 0.2, 0.8)
    assert one is not None
    assert other is not None
    assert other.norm() < 0.4 * one.norm()
    assert filtered(still.to(torch.bfloat16), 0.2, 0.8).dtype == torch.float32  # type: ignore[union-attr]
