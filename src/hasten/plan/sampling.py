"""The section of a plan that chooses the solver."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hasten.plan.section import Number, Section, Whole
from hasten.plan.values import as_name

SamplerName = Literal[
    "default",
    "ddpm",
    "ddim",
    "pndm",
    "lms",
    "euler",
    "euler_a",
    "heun",
    "dpm2",
    "dpm2_a",
    "dpm_solver++",
    "dpm_solver++_1s",
    "dpm_solver++_2s",
    "dpm_solver++_3s",
    "dpm_solver++_3m",
    "dpm_solver++_2m_sde",
    "dpm_solver++_3m_sde",
    "unipc",
    "deis",
    "sa_solver",
    "lcm",
    "tcd",
    "flow-euler",
    "flow-heun",
]
_SPELLINGS = {
    "dpm": "dpm_solver++",
    "dpm_solver": "dpm_solver++",
    "dpm_solver_multistep": "dpm_solver++",
    "dpm_solver++_2m": "dpm_solver++",
    "dpm_solver++_sde": "dpm_solver++_2m_sde",
    "euler_ancestral": "euler_a",
    "dpm2_ancestral": "dpm2_a",
    "flow_euler": "flow-euler",
    "flow_heun": "flow-heun",
    "flow_match_euler": "flow-euler",
    "flow_match_heun": "flow-heun",
}


def as_sampler(value: Any) -> Any:
    """`DPM++ 2M SDE`, `dpmsolver++-2m-sde` and `dpm_solver++_2m_sde` are one name."""
    if not isinstance(value, str):
        return value
    name = re.sub(r"[\s_-]+", "_", value.strip().lower())
    name = re.sub(r"^dpm(_?solver)?(\+\+|pp)", "dpm_solver++", name)
    return _SPELLINGS.get(name, name)


class Sampler(Section):
    """The solver of the reverse process. A null is the model's own, or else the sampler's own."""

    short_form = "name"

    name: Annotated[SamplerName, BeforeValidator(as_sampler)] = "default"
    """`default` is the one that the model came with."""
    shift: Number | None = Field(default=None, gt=0)
    """How far the noise schedule leans to high noise (flow models)."""
    order: Whole | None = Field(default=None, ge=1, le=4)
    """How many values of the denoiser a step of a multistep solver uses."""
    sigmas: Annotated[Literal["linear", "karras", "exponential", "beta"], BeforeValidator(as_name)] | None = None
    """How the noise levels lie between the highest and the lowest."""
    timestep_spacing: Annotated[Literal["linspace", "leading", "trailing"], BeforeValidator(as_name)] | None = None
    """How the steps are picked from those of the training."""
    final_sigmas: Annotated[Literal["zero", "sigma_min"], BeforeValidator(as_name)] | None = None
    """Where the last step ends."""
    solver_type: Annotated[Literal["midpoint", "heun", "bh1", "bh2", "logrho"], BeforeValidator(as_name)] | None = None
    """Which of its formulas a multistep solver of second order takes."""
    lower_order_final: bool | None = None
    """The last steps of a short run with a lower order."""
    euler_at_final: bool | None = None
    """The last step by Euler's method."""
    thresholding: bool | None = None
    """Bound the predicted image dynamically; for models of pixels."""
    zero_snr: bool | None = None
    """Rescale the noise schedule so that it begins with noise alone."""
