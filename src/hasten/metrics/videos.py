"""How close a film is to its reference: frame by frame, and in how it moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hasten.errors import HastenError
from hasten.metrics.fidelity import psnr, ssim, to_float
from hasten.metrics.latents import ratio

if TYPE_CHECKING:
    from hasten.metrics.fidelity import Picture

    Film = Sequence[Picture] | torch.Tensor | np.ndarray[Any, Any]


@dataclass(frozen=True)
class VideoErrors:
    """Errors of a film against its reference.

    psnr, ssim: of every frame; an identical frame has inf.
    temporal_l1: mean |Δa − Δb| over the differences Δ of neighbouring frames, in 0…2: flicker that no single frame
        shows. nan for a film of one frame.
    temporal_relative_l2: ‖Δa − Δb‖ / ‖Δb‖; inf where the reference stands still and the film does not.
    """

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    temporal_l1: float
    temporal_relative_l2: float


def video_errors(film: Film, reference: Film) -> VideoErrors:
    """Compare two films.

    Args:
        film, reference: sequences of pictures, tensors (T, C, H, W) or arrays (T, H, W, C).

    Raises:
        HastenError: different sizes or numbers of frames, or no film.
    """
    a, b = to_frames(film), to_frames(reference)
    if len(a) != len(b):
        raise HastenError(f"films of different lengths cannot be compared: {len(a)} and {len(b)} frames")
    pairs = list(zip(a, b, strict=True))
    ratios, likenesses = tuple(psnr(x, y) for x, y in pairs), tuple(ssim(x, y) for x, y in pairs)
    if len(a) < 2:
        return VideoErrors(ratios, likenesses, math.nan, math.nan)
    if not (a.isfinite().all() and b.isfinite().all()):
        return VideoErrors(ratios, likenesses, math.nan, math.nan)
    if a.shape[1] != b.shape[1]:  # a grey film is a film with equal channels; psnr has let nothing else pass
        channels = max(a.shape[1], b.shape[1])
        a, b = (x.expand(-1, channels, -1, -1) for x in (a, b))
    movement = b.diff(dim=0)
    error = a.diff(dim=0) - movement
    relative = ratio(error.norm().item(), movement.norm().item())
    return VideoErrors(ratios, likenesses, error.abs().mean().item(), relative)


def to_frames(film: Film) -> torch.Tensor:
    """A film as float64 frames of shape (T, C, H, W) in [0, 1].

    Raises:
        HastenError: no frames, frames of different sizes, or a tensor of another shape.
    """
    if not isinstance(film, (torch.Tensor, np.ndarray)):
        frames = [to_float(frame) for frame in film]
        if not frames:
            raise HastenError("no film: it has no frames")
        channels = max(frame.shape[-3] for frame in frames)
        frames = [x.expand(channels, *x.shape[-2:]) if x.shape[-3] == 1 else x for x in frames]
        if len({frame.shape for frame in frames}) > 1:
            raise HastenError("no film: its frames have different sizes")
        tensor = torch.stack(frames)
    else:
        tensor = to_float(film)
    if tensor.ndim != 4 or not tensor.shape[0]:
        raise HastenError(f"no film: shape {tuple(tensor.shape)}; expected (T, C, H, W), one film at a time")
    return tensor
