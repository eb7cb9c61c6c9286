"""What can be chosen on this machine for this pipeline, and the plan that a choice comes to."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hasten.plan import Plan, load_plan
from hasten.plan.adaptive import WARMUP
from hasten.schedule.solve import Point
from hasten.tune.trials import Values

AS_IT_IS = "as it is"
"""The option of every axis that changes nothing."""
ADAPTIVE = "adaptive"
"""Among numbers of steps: every run chooses its own."""


@dataclass(frozen=True)
class Axis:
    """One thing to choose besides the cache, with its options."""

    name: str
    options: Mapping[str, Values]


def axes_of(pipe: Any, plan: Plan, device: torch.device, *, compiles: bool = True) -> list[Axis]:
    """Every pass of hasten that may make this pipeline faster or smaller here; what fails is found by trying.

    Args:
        plan: the reference's; what it sets is not chosen anew.
        compiles: also try torch.compile, whose first run takes a minute.
    """
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    denoisers = [name for name in parts if name.startswith(("transformer", "unet"))]
    half = "bf16" if device.type in ("cpu", "mps") else "fp16"
    now = next(iter(parts[denoisers[0]].parameters())).dtype if denoisers else torch.float32
    wide = now is torch.float32
    quantizes = importlib.util.find_spec("torchao") is not None
    eight = {"int8": {"quantization": {"scheme": "int8"}}} if quantizes else {}
    if quantizes and device.type == "cuda":
        eight |= {"fp8": {"quantization": {"scheme": "fp8"}}}
    found = [
        Axis("denoiser", ({half: {"precision": {"denoiser": half}}} if wide else {}) | eight),
        *(
            Axis(name, {half: {"precision": {name: half}}})
            for name in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")
            if name in parts and next(iter(parts[name].parameters())).dtype is torch.float32
        ),
        Axis("layout", {"channels_last": {"attention": {"channels_last": True}}}),
        Axis("projections", {"fused": {"attention": {"fused_qkv": True}}}),
        Axis("tokens", {"a half merged": {"tokens": {"ratio": 0.5}}, "a quarter merged": {"tokens": {"ratio": 0.25}}}),
    ]
    if compiles:
        found.append(Axis("compile", {"blocks": {"compile": {"enabled": True}}}))
    set_already = {key for key in plan.model_fields_set if key != "precision"}
    return [
        axis
        for axis in found
        if axis.options and not set_already & {key for one in axis.options.values() for key in one}
    ]


def memory_axes() -> list[Axis]:
    """For the objective memory, or a ceiling for it."""
    return [
        Axis("decoding", {"tiled": {"memory": {"vae_tiling": True}}}),
        Axis("text", {"freed": {"memory": {"free_text_encoder": True}}}),
    ]


def samplers_of(pipe: Any) -> list[str]:
    """Solvers that take fewer steps, for pipelines whose noise schedule they know."""
    flow = "Flow" in type(pipe.scheduler).__name__ or getattr(pipe.scheduler.config, "use_flow_sigmas", False)
    return [] if flow else ["dpm_solver++", "unipc"]


def chooses_steps(plan: Plan) -> bool:
    """Whether runs of this plan could choose their number of steps by themselves; more is found by trying."""
    return "adaptive" not in plan.model_fields_set and (plan.generation.num_inference_steps or 0) > WARMUP + 1


def step_counts(steps: int) -> list[int]:
    """Lengths of a run that are worth a try beside the reference's own."""
    return sorted({steps, *(round(steps * share) for share in (0.56, 0.4) if steps * share >= 8)}, reverse=True)


def merged(*parts: Values) -> dict[str, Any]:
    """Nested mappings over each other, the later on top."""
    whole: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            inner = whole.get(key)
            whole[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return whole


def values_of(chosen: Mapping[str, Any], axes: Sequence[Axis], points: Sequence[Point], base: Plan) -> dict[str, Any]:
    """What a choice lays over the reference's plan.

    Args:
        chosen: `steps` (a number or `adaptive`), `sampler`, `cache` (none, schedule or tolerance), `share` or
            `tolerance`, and an option of every axis.
        points: searched schedules; the one of that length whose share of computed steps is nearest is taken.
    """
    values = merged(*(axis.options.get(str(chosen.get(axis.name)), {}) for axis in axes))
    steps = chosen.get("steps", base.generation.num_inference_steps)
    if steps == ADAPTIVE:
        values["adaptive"] = {"enabled": True}
    elif steps != base.generation.num_inference_steps:
        values["generation"] = {"num_inference_steps": steps}
    if chosen.get("sampler", AS_IT_IS) != AS_IT_IS:
        values["sampler"] = {"name": chosen["sampler"]}
    if chosen.get("cache") == "schedule":
        able = [point for point in points if point.steps == steps]
        nearest = min(able, key=lambda point: abs(point.budget / steps - float(chosen["share"])))
        values["cache"] = nearest.section
    elif chosen.get("cache") == "tolerance":
        values["cache"] = {"method": "tolerance", "tolerance": float(f"{float(chosen['tolerance']):.2g}")}
    return values


def plan_of(base: Plan, values: Values) -> Plan:
    """The reference's plan with a trial's values laid over it."""
    return load_plan(merged(base.to_dict(), values))
