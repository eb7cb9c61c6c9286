"""The state of a pipeline, as far as a pass could leave anything behind in it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def state(pipe: Any, *, places: bool = True) -> list[Any]:
    """Every attribute of every module in order, the weights by identity, place and format; the pipeline's own too."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    modules = [(f"{name}.{inner}", module) for name, part in parts.items() for inner, module in part.named_modules()]
    scheduler = ("scheduler", type(pipe.scheduler), dict(pipe.scheduler.config), id(pipe.scheduler))
    return [
        scheduler,
        *(
            (name, key, _plain(value, places))
            for name, owner in [("pipeline", pipe), *modules]
            for key, value in vars(owner).items()
            if not _is_a_trace_of_running(key)
        ),
    ]


def _is_a_trace_of_running(key: str) -> bool:
    # Guidance scales and the like, and the feature caches of film VAEs, which their runs leave behind.
    return key in ("_guidance_scale", "_num_timesteps", "_interrupt", "_current_timestep") or key.endswith(
        ("_idx", "feat_map", "_kwargs", "_clip_skip", "_guidance_rescale")
    )


def _plain(value: Any, places: bool) -> Any:
    if isinstance(value, dict):
        return [(key, _plain(inner, places)) for key, inner in value.items()]
    if isinstance(value, Tensor):
        return id(value), value.dtype, value.device, value.data_ptr() if places else 0
    if isinstance(value, (list, tuple, set)):
        return len(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)
