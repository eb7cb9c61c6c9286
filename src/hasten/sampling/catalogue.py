"""Samplers by name: which class of diffusers each is, for both families of models, and with which settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler

from hasten.plan.sampling import Sampler
from hasten.sampling import flow


@dataclass(frozen=True)
class Entry:
    """A sampler.

    Attributes:
        noise: diffusers' class for models that predict noise, the clean image or its velocity (DDPM family).
        flow: the class for flow-matching models.
        settings: entries of the scheduler's config that make it this sampler.
    """

    noise: str | None = None
    flow: type[Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def _dpm(kind: str, order: int, flow_class: type[Any], algorithm: str = "dpmsolver++") -> Entry:
    return Entry(f"DPMSolver{kind}Scheduler", flow_class, {"solver_order": order, "algorithm_type": algorithm})


_MULTI, _SINGLE = flow.FlowDPMSolverMultistep, flow.FlowDPMSolverSinglestep

CATALOGUE: dict[str, Entry] = {
    "ddpm": Entry("DDPMScheduler"),
    "ddim": Entry("DDIMScheduler"),
    "pndm": Entry("PNDMScheduler", settings={"skip_prk_steps": True}),
    "lms": Entry("LMSDiscreteScheduler"),
    "euler": Entry("EulerDiscreteScheduler"),
    "euler_a": Entry("EulerAncestralDiscreteScheduler"),
    "heun": Entry("HeunDiscreteScheduler"),
    "dpm2": Entry("KDPM2DiscreteScheduler"),
    "dpm2_a": Entry("KDPM2AncestralDiscreteScheduler"),
    "dpm_solver++": _dpm("Multistep", 2, _MULTI),
    "dpm_solver++_1s": _dpm("Singlestep", 1, _SINGLE),
    "dpm_solver++_2s": _dpm("Singlestep", 2, _SINGLE),
    "dpm_solver++_3s": _dpm("Singlestep", 3, _SINGLE),
    "dpm_solver++_3m": _dpm("Multistep", 3, _MULTI),
    "dpm_solver++_2m_sde": _dpm("Multistep", 2, _MULTI, "sde-dpmsolver++"),
    "dpm_solver++_3m_sde": _dpm("Multistep", 3, _MULTI, "sde-dpmsolver++"),
    "unipc": Entry("UniPCMultistepScheduler", flow.FlowUniPC),
    "deis": Entry("DEISMultistepScheduler", flow.FlowDEIS),
    "sa_solver": Entry("SASolverScheduler", flow.FlowSASolver),
    "lcm": Entry("LCMScheduler"),
    "tcd": Entry("TCDScheduler"),
    "flow-euler": Entry(flow=FlowMatchEulerDiscreteScheduler),
    "flow-heun": Entry(flow=flow.FlowHeunScheduler),
}

_SETTINGS = {
    "order": "solver_order",
    "timestep_spacing": "timestep_spacing",
    "final_sigmas": "final_sigmas_type",
    "solver_type": "solver_type",
    "lower_order_final": "lower_order_final",
    "euler_at_final": "euler_at_final",
    "thresholding": "thresholding",
    "zero_snr": "rescale_betas_zero_snr",
}
_SIGMAS = ("karras", "exponential", "beta")


def kind_of(name: str, *, is_flow: bool) -> type[Any] | None:
    """The class of a sampler for a family; None where that family has it not."""
    entry = CATALOGUE[name]
    if is_flow:
        return entry.flow
    return getattr(diffusers, entry.noise) if entry.noise is not None else None


def config_of(sampler: Sampler) -> dict[str, dict[str, Any]]:
    """What each key of a plan that is set means in a scheduler's config; `shift` is not among them."""
    found = {
        key: {config: getattr(sampler, key)} for key, config in _SETTINGS.items() if getattr(sampler, key) is not None
    }
    if sampler.sigmas is not None:
        found["sigmas"] = {f"use_{spacing}_sigmas": spacing == sampler.sigmas for spacing in _SIGMAS}
    return found


def takes(kind: type[Any], settings: Mapping[str, Any]) -> bool:
    """Whether a scheduler has the settings that are switched on."""
    known = inspect.signature(kind.__init__).parameters
    return all(name in known or value is False for name, value in settings.items())
