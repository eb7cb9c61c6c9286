"""The filter of SeaCache: what a noisy latent shows of the picture in it, frequency by frequency.

The power of pictures falls with the frequency, S(f) = 1/|f|^p. Of a latent a·x + b·ε the best linear guess of x is then
a·S / (a²·S + b²): low frequencies alone while there is much noise, and all of them towards the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.caching.bands import Grid, grid_for

_LEAST = 1e-6


def filtered(latent: Tensor, signal: float, noise: float, grids: Sequence[Grid] = ()) -> Tensor | None:
    """A latent through the Wiener filter of its noise level, axis by axis, with a mean gain of 1.

    Chung et al. 2026, arXiv 2602.18993, with p = 2 for images and 3 for films.

    Args:
        latent: (batch, channels, …, height, width), or (batch, tokens, channels) on one of the grids.
        signal, noise: how much of the picture and of noise there is in it, a and b.

    Returns:
        the same in float32, on its grid; None where nobody knows how its tokens lie in space.
    """
    wide = latent.to(torch.promote_types(latent.dtype, torch.float32))
    if wide.ndim > 3:
        axes = tuple(range(2, wide.ndim))
    elif grid := grid_for(wide, grids):
        wide = wide.reshape(len(wide), *grid, -1)
        axes = tuple(range(1, wide.ndim - 1))
    else:
        return None
    a, b = max(signal, _LEAST), max(noise, _LEAST)
    gain = torch.ones((), device=wide.device)
    for axis in axes:
        frequencies = torch.fft.fftfreq(wide.shape[axis], device=wide.device).abs()
        power = 1 / (frequencies ** len(axes) + 1e-16)
        along = a * power / (a * a * power + b * b)
        gain = gain * along.reshape([-1 if dim == axis else 1 for dim in range(wide.ndim)])
    found: Tensor = torch.fft.ifftn(torch.fft.fftn(wide, dim=axes) * (gain / gain.mean()), dim=axes).real
    return found
