"""Call any diffusers pipeline: the arguments it understands, told by its signature, and the pixels it returns."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from hasten.errors import HastenError
from hasten.plan import Plan


class Call(NamedTuple):
    """Keyword arguments for `pipe(**arguments)`, and notes on what this pipeline does otherwise than the plan says."""

    arguments: dict[str, Any]
    notes: tuple[str, ...]


def call_arguments(pipe: Any, plan: Plan, prompt: str, seed: int) -> Call:
    """Express a plan in the arguments that this pipeline has; there is no list of classes behind it.

    The generator lives on the CPU, so that a seed means the same noise on every device.

    Raises:
        HastenError: the plan asks for what this pipeline cannot do, or the pipeline needs inputs that a plan has not.
    """
    kind = type(pipe).__name__
    parameters = inspect.signature(pipe.__call__).parameters
    generation = plan.generation
    notes: list[str] = []
    arguments: dict[str, Any] = {"generator": torch.Generator("cpu").manual_seed(seed), "output_type": "pt"}
    if "prompt" in parameters:
        arguments["prompt"] = prompt
    else:
        notes.append(f"{kind} takes no prompt")
    arguments["num_inference_steps"] = generation.num_inference_steps
    arguments |= _sizes(pipe, plan)
    arguments |= _guidance(pipe, plan, parameters, notes)
    arguments = {name: value for name, value in arguments.items() if name in parameters}
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and name not in arguments
    ]
    if missing:
        raise HastenError(
            f"{kind} also needs {', '.join(missing)}, which a prompt does not give; call it from Python under "
            "hasten.accelerate(pipe, plan)"
        )
    return Call(arguments, tuple(notes))


def batched(arguments: Mapping[str, Any], seed: int, count: int) -> dict[str, Any]:
    """The same call for several images of one prompt at once, each with the noise it has when it is made alone.

    Args:
        arguments: of `call_arguments`.
        seed: of the first image; image i has seed + i.

    Raises:
        HastenError: a pipeline without prompts, which has nothing to make a list of.
    """
    if "prompt" not in arguments:
        raise HastenError("several images in one call need a pipeline that takes prompts")
    texts = {name: [arguments[name]] * count for name in ("prompt", "negative_prompt") if name in arguments}
    generators = [torch.Generator("cpu").manual_seed(seed + index) for index in range(count)]
    return {**arguments, **texts, "generator": generators}


def _sizes(pipe: Any, plan: Plan) -> dict[str, int]:
    processor = getattr(pipe, "image_processor", None) or getattr(pipe, "video_processor", None)
    config = getattr(processor, "config", None)
    multiple = int(config.get("vae_scale_factor", 1)) if config is not None else 1
    sizes: dict[str, int] = {}
    for name in ("width", "height"):
        value = getattr(plan.generation, name)
        if value is None:
            continue
        if value % multiple:
            # Pipelines round in silence or fail deep inside; a size that was typed deserves an answer.
            below, above = value // multiple * multiple, (value // multiple + 1) * multiple
            near = f"{below} or {above}" if below else f"{above}"
            raise HastenError(f"{name} {value}: this model makes sizes in multiples of {multiple} pixels; use {near}")
        sizes[name] = value
    return sizes


def _guidance(pipe: Any, plan: Plan, parameters: Any, notes: list[str]) -> dict[str, Any]:
    """Guidance under the names of this pipeline.

    `true_cfg_scale` exists where `guidance_scale` is an input of a distilled model; elsewhere `guidance_scale` is the
    classifier-free scale itself, so that a plan's true_cfg_scale means that one.
    """
    kind = type(pipe).__name__
    generation = plan.generation
    arguments: dict[str, Any] = {}
    true_scale, scale, negative = generation.true_cfg_scale, generation.guidance_scale, generation.negative_prompt
    if true_scale is not None and "true_cfg_scale" not in parameters:
        if "guidance_scale" not in parameters:
            raise HastenError(f"{kind} has no guidance: leave true_cfg_scale out")
        if scale is not None and scale != true_scale:
            raise HastenError(f"{kind} has one guidance scale: give true_cfg_scale or guidance_scale, not both")
        notes.append(f"true_cfg_scale is called guidance_scale in {kind}")
        scale, true_scale = true_scale, None
    if scale is not None and "guidance_scale" not in parameters:
        raise HastenError(f"{kind} has no guidance_scale: leave it out" + _instead(parameters))
    if true_scale is not None:
        arguments["true_cfg_scale"] = true_scale
    if scale is not None:
        arguments["guidance_scale"] = scale
    if negative is None:
        return arguments
    if "true_cfg_scale" in parameters:
        effective = true_scale if true_scale is not None else parameters["true_cfg_scale"].default
        # Without true guidance a negative prompt does nothing but draw a warning.
        if effective is None or effective > 1:
            arguments["negative_prompt"] = negative
    elif negative.strip():
        if "negative_prompt" in parameters:
            arguments["negative_prompt"] = negative
        else:
            notes.append(f"{kind} takes no negative prompt: it was left out")
    return arguments


def _instead(parameters: Any) -> str:
    return "; its scale is true_cfg_scale" if "true_cfg_scale" in parameters else ""


def pixels_of(output: Any) -> torch.Tensor:
    """The first image or film of a pipeline's output, as float pixels of shape (frames, channels, height, width).

    Args:
        output: what `pipe(...)` returned: an output object with `images` or `frames`, or a tuple.

    Raises:
        HastenError: it holds neither.
    """
    batch = next((found for name in ("images", "frames") if (found := getattr(output, name, None)) is not None), None)
    if batch is None and isinstance(output, tuple):
        batch = output[0]
    if batch is None:
        raise HastenError(f"this pipeline returns a {type(output).__name__}, which holds neither images nor frames")
    from hasten.metrics.fidelity import to_float

    first = batch[0]
    if isinstance(first, (list, tuple)):
        pixels = torch.stack([to_float(frame) for frame in first])
    elif isinstance(first, torch.Tensor):
        pixels = first.detach().cpu()
    elif isinstance(first, np.ndarray) and first.ndim == 2:
        pixels = to_float(first)
    else:
        pixels = to_float(first)
    return pixels.float().reshape(-1, *pixels.shape[-3:])
