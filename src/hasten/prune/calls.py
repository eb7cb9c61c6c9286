"""Real calls of a denoiser, kept from runs of its pipeline: what pruning is judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hasten.errors import HastenError
from hasten.generation import Session
from hasten.inspect.known import tensors_in


@dataclass(frozen=True)
class Call:
    """A call of the denoiser.

    Attributes:
        args, kwargs: what it was given.
        output: the first tensor that it returned.
        step: of the run, from 0.
        timestep: the scheduler's, at that step.
        clean: what the run ended in, in the layout of the noisy input.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    step: int
    timestep: Tensor
    clean: Tensor | None = None


def record(session: Session, denoiser: nn.Module, seed: int, steps: int) -> list[Call]:
    """Make one run for each of the session's prompts, with nothing skipped, and keep all calls of the denoiser.

    Args:
        steps: of each run.

    Raises:
        HastenError: the denoiser was never called.
    """
    kept: list[Call] = []
    for number, prompt in enumerate(session.prompts):
        calls = _Calls(session, denoiser)
        with calls:
            result = session.run(prompt, seed + number, accelerated=False, steps=steps)
        kept += [replace(call, clean=result.latents) for call in calls.kept]
    if not kept:
        raise HastenError(f"{type(denoiser).__name__} was not called by {type(session.pipe).__name__}")
    return kept


class _Calls:
    """Keeps what a denoiser is given and what it returns, while the pipeline runs."""

    def __init__(self, session: Session, denoiser: nn.Module) -> None:
        self.kept: list[Call] = []
        self._scheduler = session.pipe.scheduler
        self._denoiser = denoiser
        self._last: int | None = None
        self._step = -1

    def __enter__(self) -> _Calls:
        self._hook = self._denoiser.register_forward_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        timesteps = self._scheduler.timesteps
        given = next((value for value in (kwargs.get("timestep"), *args[1:2]) if value is not None), None)
        step = _nearest(given, timesteps, len(self.kept))
        copied = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), (args, kwargs))
        output = next(tensors_in(tuple(result) if isinstance(result, tuple) else dict(result))).detach().clone()
        self.kept.append(Call(copied[0], copied[1], output, step, timesteps[step].detach().cpu()))


def _nearest(given: Any, timesteps: Tensor, number: int) -> int:
    """The step whose timestep a call was given; some pipelines divide it by 1000."""
    if given is None:
        return min(number, len(timesteps) - 1)
    value = float(given.flatten()[0]) if isinstance(given, Tensor) else float(given)
    candidates = torch.stack([timesteps.detach().float().cpu() - scale * value for scale in (1.0, 1000.0)]).abs()
    return int(candidates.min(0).values.argmin())


def call_again(model: nn.Module, call: Call, **changed: Any) -> Tensor:
    """What a model returns for the same arguments."""
    result = model(*call.args, **{**call.kwargs, **changed})
    return next(tensors_in(tuple(result) if isinstance(result, tuple) else dict(result)))


def effect(model: nn.Module, calls: Sequence[Call]) -> float:
    """Mean squared error of a changed model's outputs, relative to the square of what they were."""
    errors = []
    with torch.no_grad():
        for call in calls:
            output = call_again(model, call)
            if output.shape != call.output.shape:
                raise HastenError(f"its output has become {tuple(output.shape)}")
            error = (output.float() - call.output.float()).square().mean()
            errors.append(float(error / call.output.float().square().mean().clamp_min(1e-12)))
    return sum(errors) / len(errors)
