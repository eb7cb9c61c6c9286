"""What a scheduler makes of each step's output, found by running a copy of it on single numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

# What would make a scheduler bend its numbers, so that they say nothing of other numbers.
_BENDING = {"clip_sample": False, "thresholding": False}


@dataclass(frozen=True)
class Effects:
    """How the final latent depends on what goes into each step while everything else stays.

    For an Euler step of a flow `outputs` are `σ_{k+1} − σ_k` and `latents` are 1. What the model would answer to a
    changed latent is not in it.

    Attributes:
        outputs: `a_k = ∂x_T/∂y_k` of the denoiser's output at each step, guidance included.
        latents: `b_k = ∂x_T/∂x_k` of the latent that enters each step.
    """

    outputs: tuple[float, ...]
    latents: tuple[float, ...]

    def since(self, step: int) -> Effects:
        """Of a run that begins with that step."""
        return Effects(self.outputs[step:], self.latents[step:]) if step else self


def effects_of(scheduler: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Effects:
    """Follow a scheduler through a run of its own.

    One copy runs 2·T numbers side by side: T in which one output each is 1 and all others 0, and T in which 1 is added
    to the latent before one step each. A second run with the same noise, in which nothing is put in, is taken off.

    Args:
        args, kwargs: of the `set_timesteps` call.

    Raises:
        ValueError: its noise cannot be repeated, or its numbers are none.
        Exception: whatever a scheduler of unusual make raises when it is called like this.
    """
    kwargs = dict(kwargs or {})
    args = tuple("cpu" if isinstance(value, torch.device) else value for value in args)
    if "device" in kwargs:
        kwargs["device"] = "cpu"
    with torch.random.fork_rng(devices=[]):
        loud, quiet = (_followed(scheduler, args, kwargs, level) for level in (1.0, 0.0))
        if quiet.any() and not torch.equal(quiet, _followed(scheduler, args, kwargs, 0.0)):
            raise ValueError(f"the noise of {type(scheduler).__name__} is another in every run")
    values = (loud - quiet).tolist()
    if not all(map(isfinite, values)):
        raise ValueError(f"{type(scheduler).__name__} ends in NaN or infinity")
    total = len(values) // 2
    return Effects(tuple(values[:total]), tuple(values[total:]))


def _followed(scheduler: Any, args: Sequence[Any], kwargs: Mapping[str, Any], level: float) -> Tensor:
    bending = {key: value for key, value in _BENDING.items() if key in scheduler.config}
    copy = type(scheduler).from_config(scheduler.config, **bending)
    copy.set_timesteps(*args, **kwargs)
    if hasattr(copy, "set_begin_index"):
        copy.set_begin_index(0)
    seeded = {}
    if "generator" in inspect.signature(copy.step).parameters:
        seeded["generator"] = torch.Generator().manual_seed(0)
    total = len(copy.timesteps)
    sample = torch.zeros(2 * total, 1, 1, 1)
    for index, timestep in enumerate(copy.timesteps):
        output = torch.zeros_like(sample)
        output[index] = level
        sample[total + index] += level
        sample = copy.step(output, timestep, sample, return_dict=False, **seeded)[0].clone()
    return sample.flatten()
