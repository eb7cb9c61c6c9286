"""Gradients for Diff-Pruning: of the diffusion loss, at the timesteps where it still says something.

Fang et al. 2023, arXiv 2305.10924.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.prune.calls import Call, call_again


def gather_gradients(model: nn.Module, scheduler: Any, calls: Sequence[Call], threshold: float, seed: int) -> int:
    """Sum the gradients of the loss L_t over the calls whose timestep has L_t > threshold · max L.

    What a run ended in is made noisy again as the scheduler does it, and the loss is the squared error of what the
    model says of it. The paper leaves out timesteps with a small loss: their gradients are small, noisy and misleading.

    Args:
        threshold: the paper's 𝒯, 0 takes all timesteps.

    Returns:
        How many calls were summed over.

    Raises:
        HastenError: the scheduler cannot make clean latents noisy.
    """
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    drawn = [_noised(scheduler, call, generator) for call in calls]
    with torch.no_grad():
        losses = [float(_loss(model, call, *given)) for call, given in zip(calls, drawn, strict=True)]
    kept = [at for at, loss in enumerate(losses) if loss > threshold * max(losses)]
    with torch.enable_grad():
        for at in kept:
            _loss(model, calls[at], *drawn[at]).backward()
    return len(kept)


def _loss(model: nn.Module, call: Call, noisy: Tensor, target: Tensor) -> Tensor:
    name = next(iter(inspect.signature(model.forward).parameters))
    if name in call.kwargs:
        output = call_again(model, call, **{name: noisy})
    else:
        output = call_again(model, Call((noisy, *call.args[1:]), call.kwargs, call.output, call.step, call.timestep))
    return (output[:, : target.shape[1]].float() - target.float()).square().mean()


def _noised(scheduler: Any, call: Call, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy latents of the call's shape at its timestep, and what the model should say of them."""
    if call.clean is None:
        raise HastenError("the run kept no latents: there is nothing to make noisy")
    given = next(iter(call.kwargs.values())) if not call.args else call.args[0]
    clean = call.clean.to(given).repeat(len(given) // len(call.clean), *[1] * (call.clean.ndim - 1))
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    times = call.timestep.reshape(1).to(clean.device).expand(len(clean))
    if hasattr(scheduler, "scale_noise"):  # flow matching
        return scheduler.scale_noise(clean, times, noise), noise - clean
    if not hasattr(scheduler, "add_noise"):
        raise HastenError(f"{type(scheduler).__name__} cannot make latents noisy: go by magnitude instead")
    noisy = scheduler.add_noise(clean, noise, times.long())
    if scheduler.config.prediction_type == "v_prediction":
        return noisy, scheduler.get_velocity(clean, noise, times.long())
    return noisy, clean if scheduler.config.prediction_type == "sample" else noise
