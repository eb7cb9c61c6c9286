"""Samplers by name: a plan's `sampler` section put on a pipeline, or refused with what would fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.plan import Sampler


class FlowHeunScheduler(FlowMatchEulerDiscreteScheduler):
    """Heun's method for flow matching: two denoiser calls a step, except the last one, second-order accurate.

    diffusers' own FlowMatchHeunDiscreteScheduler takes neither `sigmas` nor `mu`, which most flow pipelines pass, and
    applies its shift twice. This one takes the schedule of the Euler scheduler as it is, dynamic shifting included.
    Karras et al., 2022, arXiv 2206.00364, algorithm 1 without churn, in the flow's own variables: with velocity v,
    x' = x + Δσ·v(x, σ), then x ← x + Δσ·(v(x, σ) + v(x', σ'))/2.
    """

    order = 2
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    _step_index: int
    _first: tuple[torch.Tensor, torch.Tensor] | None = None

    # Spelt out, since pipelines look at the signature before they pass `sigmas` or `mu`.
    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As FlowMatchEulerDiscreteScheduler's; every timestep but the first then stands twice."""
        super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu, timesteps=timesteps)
        self.timesteps = torch.cat([self.timesteps[:1], self.timesteps[1:].repeat_interleave(2)])
        self.sigmas = torch.cat([self.sigmas[:1], self.sigmas[1:-1].repeat_interleave(2), self.sigmas[-1:]])
        self._first = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        **unused: Any,
    ) -> Any:
        """One half of a step: to the next sigma by Euler, or the correction of that with the slope found there."""
        if self.step_index is None:
            self._init_step_index(timestep)
        velocity, sample = model_output.float(), sample.float()
        if self._first is None:
            width = self.sigmas[self.step_index + 1] - self.sigmas[self.step_index]
            self._first = (sample, velocity)
            result = sample + width * velocity
        else:
            width = self.sigmas[self.step_index] - self.sigmas[self.step_index - 1]
            start, slope = self._first
            self._first = None
            result = start + width * (slope + velocity) / 2
        self._step_index += 1
        result = result.to(model_output.dtype)
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=result) if return_dict else (result,)


FLOW_SAMPLERS: dict[str, Any] = {"flow-euler": FlowMatchEulerDiscreteScheduler, "flow-heun": FlowHeunScheduler}


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler belongs to a flow-matching model: a structural test, not a list of classes.

    `scale_noise` is the flow's straight-line forward process (others have `add_noise`); solvers that serve both
    families say in their config which one they serve.
    """
    config = scheduler.config
    return (
        hasattr(scheduler, "scale_noise")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def compatible(scheduler: Any) -> list[str]:
    """Names of the samplers that fit a model, told by the scheduler it came with."""
    return ["default", *FLOW_SAMPLERS] if is_flow(scheduler) else ["default"]


def apply_sampler(pipe: Any, sampler: Sampler) -> None:
    """Put the plan's sampler on a pipeline, in place.

    Raises:
        HastenError: the sampler or the shift does not fit the model's family; with the names that do.
    """
    if sampler.name == "default" and sampler.shift is None:
        return
    old = getattr(pipe, "scheduler", None)
    if old is None:
        raise HastenError(f"{type(pipe).__name__} has no scheduler: leave sampler.name at default")
    family = f"{type(pipe).__name__} came with {type(old).__name__}, which is not of the flow-matching family"
    if not is_flow(old):
        if sampler.name != "default":
            fitting = ", ".join(compatible(old))
            raise HastenError(f"sampler {sampler.name!r} does not fit: {family}. Compatible here: {fitting}")
        raise HastenError(f"sampler.shift does not fit: {family}. Leave it out")
    changes: dict[str, Any] = {}
    static = sampler.shift if sampler.shift is not None else old.config.get("flow_shift")
    if static is not None:
        changes["shift"] = static
    if sampler.shift is not None:
        # A dynamic shift is made from the image's size and would win over the one asked for.
        changes["use_dynamic_shifting"] = False
        if "flow_shift" in old.config:
            changes["flow_shift"] = sampler.shift
    kind = FLOW_SAMPLERS.get(sampler.name, type(old))
    pipe.scheduler = kind.from_config(old.config, **changes)
