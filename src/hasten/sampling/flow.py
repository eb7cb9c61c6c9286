"""Solvers for flow matching that diffusers does not have, or not in a form that flow pipelines can call."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)


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


class OnFlowSchedule:
    """Runs a multistep solver of diffusers on the schedule that the model's own Euler scheduler makes.

    By themselves these solvers refuse the `sigmas` that most flow pipelines pass, and shift them in ways of their own.
    Its config holds `flow_schedule`: the config of that Euler scheduler.
    """

    ends_at = 0.0
    """Its lowest noise level: not every solver can go to none at all."""
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    config: Any

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """As FlowMatchEulerDiscreteScheduler's."""
        euler = FlowMatchEulerDiscreteScheduler(**self.config.get("flow_schedule", {}))
        euler.set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu)
        super().set_timesteps(len(euler.timesteps), device=device)  # type: ignore[misc]
        # At σ = 1 there is no signal, and its logarithm, which these solvers count in, is infinite.
        self.sigmas = euler.sigmas.to("cpu", torch.float32).clamp(self.ends_at, 1 - 1e-6)
        self.timesteps = euler.timesteps.to(device)


class FlowDPMSolverMultistep(OnFlowSchedule, DPMSolverMultistepScheduler):
    """DPM-Solver++ (Lu et al., 2022, arXiv 2211.01095), multistep, on a flow's schedule."""


class FlowDPMSolverSinglestep(OnFlowSchedule, DPMSolverSinglestepScheduler):
    """The same, singlestep."""


class FlowUniPC(OnFlowSchedule, UniPCMultistepScheduler):
    """UniPC (Zhao et al., 2023, arXiv 2302.04867) on a flow's schedule."""


class FlowDEIS(OnFlowSchedule, DEISMultistepScheduler):
    """DEIS (Zhang and Chen, 2022, arXiv 2204.13902) on a flow's schedule."""

    ends_at = 1e-3


class FlowSASolver(OnFlowSchedule, SASolverScheduler):
    """SA-Solver (Xue et al., 2023, arXiv 2309.05019) on a flow's schedule."""

    ends_at = 1e-3
