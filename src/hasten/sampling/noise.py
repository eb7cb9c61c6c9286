"""Noise levels in one form for all families of schedulers, and the clean image that a denoiser's output means.

A noisy sample is x = α·x₀ + σ·ε. Families differ in how α goes with σ, and all become a flow in other units: with
z = x/(α + σ) and u = σ/(α + σ), z = (1 − u)·x₀ + u·ε, whose velocity dz/du = ε − x₀ is what every solver integrates.
"""

from __future__ import annotations

from math import hypot
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hasten.caching.clock import noise_levels
from hasten.sampling.samplers import is_flow

Kind = Literal["flow", "exploding", "preserving"]
"""How signal and noise share a sample: α = 1 − σ, α = 1, or α² + σ² = 1."""

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")


class Level(NamedTuple):
    """A noise level: x = alpha·x₀ + sigma·ε."""

    alpha: float
    sigma: float

    @property
    def place(self) -> float:
        """u = σ/(α + σ): 1 for noise alone, 0 for none."""
        return self.sigma / (self.alpha + self.sigma)


def level_of(kind: Kind, sigma: float) -> Level:
    """The level that a scheduler's own sigma means; of a variance-preserving one it is σ/α."""
    if kind == "flow":
        return Level(1 - sigma, sigma)
    if kind == "exploding":
        return Level(1.0, sigma)
    scale = hypot(1.0, sigma)
    return Level(1 / scale, sigma / scale)


def levels_of(scheduler: Any, kind: Kind) -> tuple[Level, ...]:
    """The noise level at each timestep of a scheduler's present schedule."""
    return tuple(level_of(kind, sigma) for sigma in noise_levels(scheduler)[1])


def kind_of(scheduler: Any) -> Kind | None:
    """Told by what the scheduler itself adds to a sample at one of its timesteps; None if it is none of these.

    Args:
        scheduler: with timesteps set, and no step made.
    """
    if is_flow(scheduler):
        return "flow"
    if not hasattr(scheduler, "add_noise"):
        return None
    timesteps, sigmas = noise_levels(scheduler)
    position = len(timesteps) // 2
    at = scheduler.timesteps[position : position + 1]
    one, none = torch.ones(1), torch.zeros(1)
    found = Level(float(scheduler.add_noise(one, none, at)), float(scheduler.add_noise(none, one, at)))
    kinds: tuple[Kind, ...] = ("exploding", "preserving")
    told = {kind: level_of(kind, sigmas[position]) for kind in kinds}
    return next((kind for kind, level in told.items() if _close(level, found)), None)


def _close(a: Level, b: Level) -> bool:
    return abs(a.alpha - b.alpha) < 1e-3 and abs(a.sigma - b.sigma) < 1e-3 * max(1.0, b.sigma)


def prediction_of(scheduler: Any, kind: Kind) -> str | None:
    """What its denoiser predicts, one of `PREDICTIONS`; None where it says something else."""
    if kind == "flow":
        return "flow_prediction"
    told = scheduler.config.get("prediction_type", "epsilon")
    return told if told in PREDICTIONS else None


def clean_image(output: Tensor, sample: Tensor, level: Level, prediction: str) -> Tensor:
    """x₀, as a denoiser's output means it.

    Args:
        output: its prediction, shape (batch, …).
        sample: x, the same shape, as the solver has it: not scaled for the denoiser.
        level: of the sample.
        prediction: one of `PREDICTIONS`.
    """
    alpha, sigma = level
    if prediction == "sample":
        return output
    if prediction == "flow_prediction":
        return sample - sigma * output
    if prediction == "epsilon":
        return (sample - sigma * output) / max(alpha, 1e-4)
    # Velocity is defined for α² + σ² = 1; a sample of another scale is one of those, scaled.
    scale = hypot(alpha, sigma)
    return (alpha * sample / scale - sigma * output) / scale


def denoiser_output(clean: Tensor, sample: Tensor, level: Level, prediction: str) -> Tensor:
    """The output that means this clean image: the inverse of `clean_image`."""
    alpha, sigma = level
    if prediction == "sample":
        return clean
    if prediction in ("flow_prediction", "epsilon"):
        return (sample - (1.0 if prediction == "flow_prediction" else alpha) * clean) / sigma
    scale = hypot(alpha, sigma)
    return (alpha * sample / scale - scale * clean) / sigma
