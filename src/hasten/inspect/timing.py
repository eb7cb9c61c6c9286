"""Measure how long each layer takes, on real weights and a real device."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from hasten.devices import synchronize
from hasten.errors import LoadError
from hasten.inspect.building import find_class
from hasten.inspect.known import value_of
from hasten.inspect.running import Run
from hasten.inspect.sources import Part
from hasten.loading import dtype_keyword
from hasten.models import check_weights


def load_part(part: Part, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A component with its weights.

    Raises:
        LoadError: there are no weights, or they cannot be read.
    """
    if part.folder is None or not any(part.folder.glob("*.safetensors")):
        raise LoadError(
            f"{part.name}: times need weights, and there are none beside this configuration; "
            "give a diffusers folder or a bundled model"
        )
    check_weights(part.folder)
    try:
        model = find_class(part).from_pretrained(
            part.folder, **dtype_keyword(dtype), use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise LoadError(f"{part.folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model.eval().requires_grad_(False).to(device)


def measure(model: nn.Module, run: Run, device: torch.device, dtype: torch.dtype, rounds: int = 3) -> dict[str, float]:
    """Seconds of each module for one call, by path; the root is "".

    The device is waited for before and after each module, so that its work is not booked on the next one; on a GPU
    that makes small layers look slower than they are in a free run.

    Args:
        model: with weights, on the device.
        run: what went through on the meta device: the same call is made.
        rounds: the median of so many calls, after one to warm up.
    """
    arguments = tree_map_only(Tensor, partial(_real, device=device, dtype=dtype), run.arguments)
    call = getattr(model, run.method)
    spans: defaultdict[str, list[float]] = defaultdict(list)
    with torch.inference_mode():
        call(**arguments)
        for _ in range(rounds):
            for path, seconds in _one(model, partial(call, **arguments), device).items():
                spans[path].append(seconds)
    return {path: statistics.median(seconds) for path, seconds in spans.items()}


def _one(model: nn.Module, call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    spent: defaultdict[str, float] = defaultdict(float)
    began: list[float] = []

    def now() -> float:
        synchronize(device)
        return time.perf_counter()

    def before(module: nn.Module, arguments: Any) -> None:
        began.append(now())

    def after(path: str, module: nn.Module, arguments: Any, result: Any) -> None:
        spent[path] += now() - began.pop()

    hooks = []
    for path, module in model.named_modules():
        if path:
            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(module.register_forward_hook(partial(after, path)))
    try:
        start = now()
        call()
        spent[""] = now() - start
    finally:
        for hook in hooks:
            hook.remove()
    return dict(spent)


def _real(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor to compute with: the known values, or noise."""
    value = value_of(tensor)
    if value is None:
        value = (
            torch.randn(tensor.shape) if tensor.is_floating_point() else torch.zeros(tensor.shape, dtype=tensor.dtype)
        )
    return value.to(device, dtype if value.is_floating_point() else value.dtype)
