"""Two frequency bands of a value, predicted each in its own way.

What is slow in space is also slow in time, and the other way round: TaylorCache (AngelSlim) and FreqCa (2025) predict
the low frequencies with another order than the high ones. A prediction is linear, so the low band is mended after the
fact: `ŷ = Σ_j w_j y_j + P_low Σ_j (w_j^low − w_j) y_j`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from hasten.caching.predictors import Weights

Grid = tuple[int, ...]
"""(height, width) or (frames, height, width), in the order in which tokens or latents lie."""


@dataclass(frozen=True)
class LowBand:
    """How the low frequencies are predicted.

    Attributes:
        weights: newest first.
        cut: the share of the highest frequency below which the low band lies.
        grids: what the denoiser's arguments tell of the token grid.
    """

    weights: Weights
    cut: float
    grids: tuple[Grid, ...] = ()

    def notes(self, values: Sequence[Tensor]) -> Iterator[str]:
        """What the frequencies of each value are those of."""
        for value in values:
            grid = grid_for(value, self.grids)
            where = f"over the {grid[-2]} × {grid[-1]} grid" if grid else "along the line of tokens (no grid is known)"
            yield f"low frequencies of {' × '.join(map(str, value.shape[1:]))} values are taken {where}"


def grids_of(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Grid, ...]:
    """Grids that tokens may lie on, as a denoiser's arguments tell: latents with rows and columns, tuples of sizes
    (`img_shapes`), and the coordinates of every token (`img_ids`). On an accelerator the latter wait for the device.
    """
    return tuple(dict.fromkeys(grid for value in (*args, *kwargs.values()) for grid in _grids(value)))


def _grids(value: Any) -> Iterator[Grid]:
    if isinstance(value, Tensor):
        if value.ndim in (4, 5):
            yield tuple(value.shape[2:])
        elif value.ndim in (2, 3) and 2 <= value.shape[-1] <= 4:
            tokens = value.reshape(-1, *value.shape[-2:])[0]
            counts = [len(torch.unique(column)) for column in tokens.unbind(-1)]
            if prod(counts) == len(tokens):
                yield tuple(count for count in counts if count > 1)
    elif isinstance(value, (tuple, list)):
        if len(value) in (2, 3) and all(type(size) is int for size in value):
            yield tuple(value)
        else:
            for inner in value:
                yield from _grids(inner)


def low_pass(value: Tensor, cut: float, grids: Sequence[Grid] = ()) -> Tensor:
    """The part of a value whose spatial frequency is at most `cut` of the highest along any axis.

    Args:
        value: (batch, tokens, channels), or (batch, channels, …, height, width).
        grids: where one fits the tokens, the frequencies are those of height and width; else those along the tokens
            as they follow each other.
    """
    grid = grid_for(value, grids)
    if not grid:
        return _filter(value, (value.ndim - 2 if value.ndim > 1 else 0,), cut)
    if value.ndim > 3:
        return _filter(value, (-2, -1), cut)
    batch, _, channels = value.shape
    return _filter(value.reshape(batch, *grid, channels), (-3, -2), cut).reshape(value.shape)


def grid_for(value: Tensor, grids: Sequence[Grid]) -> Grid:
    """The (…, height, width) in which a value lies in space; nothing where that cannot be told."""
    if value.ndim > 3:
        return tuple(value.shape[-2:])
    if value.ndim < 3:
        return ()
    return next((fit for grid in grids if (fit := _patched(grid, value.shape[1]))), ())


def _patched(grid: Grid, tokens: int) -> Grid:
    """The grid, or what patches of p × p (and of t frames) make of it, if that has so many tokens."""
    *frames, height, width = grid
    if min(height, width) < 2:
        return ()
    for patch in range(1, min(height, width) // 2 + 1):
        for per in {1, patch} if frames else {1}:
            if height % patch or width % patch or any(count % per for count in frames):
                continue
            fit = (*(count // per for count in frames), height // patch, width // patch)
            if prod(fit) == tokens:
                return fit
    return ()


def _filter(value: Tensor, dims: tuple[int, ...], cut: float) -> Tensor:
    """Keep the frequencies up to `cut` of the highest, over the given dimensions."""
    wide = value.to(torch.promote_types(value.dtype, torch.float32))
    dims = tuple(dim % wide.ndim for dim in dims)
    sizes = [wide.shape[dim] for dim in dims]
    square = torch.zeros((), device=wide.device)
    highest = 0.0
    for dim, size in zip(dims, sizes, strict=True):
        last = dim == dims[-1]
        frequencies = (torch.fft.rfftfreq if last else torch.fft.fftfreq)(size, device=wide.device)
        square = square + frequencies.square().reshape([-1 if d == dim else 1 for d in range(wide.ndim)])
        highest = max(highest, (size // 2) / size)
    limit = (1 + 1e-5) * (cut * highest) ** 2  # a frequency on the line is below it
    spectrum = torch.fft.rfftn(wide, dim=dims) * (square <= limit)
    kept: Tensor = torch.fft.irfftn(spectrum, s=sizes, dim=dims)
    return kept.to(value.dtype)
