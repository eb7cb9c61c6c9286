"""How far a latent is from its reference: what caching changes before the decoder smooths it over."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hasten.errors import HastenError

if TYPE_CHECKING:
    Tensorlike = torch.Tensor | np.ndarray[Any, Any]


@dataclass(frozen=True)
class LatentErrors:
    """Errors of a whole tensor; a batch is measured as one signal.

    relative_l1, relative_l2: ‖a − b‖ / ‖b‖, 0 for identical tensors, inf where only b is zero.
    cosine: of the angle between them, nan where either is zero.
    max_difference: largest |a − b|.
    All are nan where either tensor holds NaN or infinity.
    """

    relative_l1: float
    relative_l2: float
    cosine: float
    max_difference: float


def latent_errors(latents: Tensorlike, reference: Tensorlike) -> LatentErrors:
    """Compare tensors of any one shape, in float64.

    Raises:
        HastenError: different shapes (never broadcast), complex or empty tensors.
    """
    a, b = (torch.as_tensor(x).detach().cpu() for x in (latents, reference))
    if a.shape != b.shape:
        raise HastenError(f"latents of different shapes cannot be compared: {tuple(a.shape)} and {tuple(b.shape)}")
    if a.is_complex() or b.is_complex() or not a.numel():
        raise HastenError(f"no latents: shape {tuple(a.shape)}, {a.dtype} and {b.dtype}; expected real numbers")
    a, b = a.double().flatten(), b.double().flatten()
    if not (a.isfinite().all() and b.isfinite().all()):
        return LatentErrors(math.nan, math.nan, math.nan, math.nan)
    difference = (a - b).abs()
    norms = (a.norm() * b.norm()).item()
    return LatentErrors(
        relative_l1=ratio(difference.sum().item(), b.abs().sum().item()),
        relative_l2=ratio(difference.norm().item(), b.norm().item()),
        # Rounding puts the cosine of equal vectors a hair above 1.
        cosine=max(-1.0, min(1.0, (a @ b).item() / norms)) if norms else math.nan,
        max_difference=difference.max().item(),
    )


def ratio(error: float, size: float) -> float:
    """error / size, where nothing off nothing is no error."""
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size
