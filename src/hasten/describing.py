"""What a record says of the plan, the model, the device and the versions that made an image."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hasten import record as records
from hasten._version import __version__
from hasten.devices import DTYPES, device_name
from hasten.errors import PlanError
from hasten.passes import Target
from hasten.passes.target import floating_dtype
from hasten.plan import Output, Plan, load_plan
from hasten.plan.resolved import resolved_dict


def versions() -> dict[str, str]:
    """Versions of what takes part in making an image."""
    import diffusers
    import transformers

    return {
        "hasten": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
    }


def plan_of_one(plan: Plan, seed: int, dtype: str) -> Plan:
    """The plan that makes this one image again, also where another machine or hasten has other defaults."""
    # A site that was not asked for is a wish, which falls back where a model cannot fulfil it; it has to stay one.
    values = resolved_dict(plan, wishes=True)
    values["precision"] = {**values["precision"], "dtype": dtype}
    values["generation"]["num_images"] = 1
    values["seed"] = seed
    values["io"] = {}  # the folder is of this machine and may name its user; it says nothing of the image
    try:
        return load_plan(values)
    except PlanError:  # a default that does not fit so few steps was bent where it ran, not in the plan
        return plan.model_copy(update={"seed": seed, "io": Output()})


def describe_model(plan: Plan, pipe: Any) -> records.Model:
    """The model as it was found."""
    components: Mapping[str, Any] = getattr(pipe, "components", {})
    denoisers = tuple(
        type(module).__name__
        for name, module in components.items()
        if module is not None and name.startswith(("transformer", "unet"))
    )
    scheduler = components.get("scheduler")
    return records.Model(
        name=Path(plan.model).name,
        pipeline=type(pipe).__name__,
        denoisers=denoisers,
        scheduler=type(scheduler).__name__ if scheduler is not None else None,
    )


def dtype_of(pipe: Any) -> torch.dtype:
    """The format that the denoiser computes in; components may differ."""
    target = Target.of(pipe)
    found = [dtype for name in target.denoisers if (dtype := floating_dtype(target.modules[name])) is not None]
    return found[0] if found else getattr(pipe, "dtype", torch.float32)


def dtype_name(pipe: Any) -> str:
    """The same by its name in plans."""
    dtype = dtype_of(pipe)
    return next((name for name, known in DTYPES.items() if known is dtype), "auto")


def describe_device(pipe: Any, device: torch.device) -> records.Device:
    """Where it ran."""
    return records.Device(
        type=device.type,
        name=device_name(device),
        dtype=str(dtype_of(pipe)).removeprefix("torch."),
        threads=torch.get_num_threads() if device.type == "cpu" else None,
    )
