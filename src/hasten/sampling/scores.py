"""How unsure a run is of its image after the first steps: scores, larger where more steps are needed.

All of them are relative to the size of the predicted image, and none depends on how wide the steps were: they are
derivatives over the noise level, so that one threshold fits runs of other lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.plan.adaptive import Score
from hasten.sampling.noise import Level, clean_image


@dataclass(frozen=True)
class Prediction:
    """What the denoiser told at one step, in the units of `noise`.

    Attributes:
        place: u, the noise level from 1 (noise) to 0.
        clean: x₀, the image that it predicts, shape (batch, …).
        velocity: ε − x₀.
    """

    place: float
    clean: Tensor
    velocity: Tensor

    @classmethod
    def of(cls, output: Tensor, sample: Tensor, level: Level, prediction: str) -> Prediction:
        """From a denoiser's output and the sample that it was made for."""
        sample = sample.float()
        clean = clean_image(output.float(), sample, level, prediction)
        place = level.place
        return cls(place, clean, (sample / (level.alpha + level.sigma) - clean) / place)


def variance(past: Sequence[Prediction]) -> Tensor:
    """`pred_var`: the variance of the predicted image over the steps, by its mean square at the last of them.

    Returns:
        One number for each image of the batch, as all scores do.
    """
    clean = torch.stack([prediction.clean for prediction in past])
    return _mean(clean.var(dim=0, correction=0)) / _mean(past[-1].clean.square())


def order_difference(past: Sequence[Prediction]) -> Tensor:
    """`solver_order`: by how much one step of second order from here to the end would differ from one of first order.

    A step from u to 0 by Euler is z − u·v. Adams-Bashforth of second order adds u²/2·dv/du, the slope taken over the
    last two steps.
    """
    before, last = past[-2:]
    slope = (last.velocity - before.velocity) / (last.place - before.place)
    return _size(slope) * last.place**2 / 2 / _size(last.clean)


def curvature(past: Sequence[Prediction]) -> Tensor:
    """`curvature`: the second derivative of the predicted image over the noise level, u²/2·d²x₀/du².

    By Newton's divided difference over the last three steps, which may lie unevenly.
    """
    first, second, third = past[-3:]
    newer = (third.clean - second.clean) / (third.place - second.place)
    older = (second.clean - first.clean) / (second.place - first.place)
    bend = (newer - older) / (third.place - first.place)
    return _size(bend) * third.place**2 / _size(third.clean)


SCORES: Mapping[Score, Callable[[Sequence[Prediction]], Tensor]] = {
    "pred_var": variance,
    "solver_order": order_difference,
    "curvature": curvature,
}


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(dim=1)


def _size(values: Tensor) -> Tensor:
    """The root of the mean square of each image."""
    return _mean(values.square()).sqrt()
