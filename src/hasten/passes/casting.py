"""Borders between number formats: a part that computes in bf16 may be called from a pipeline that computes in fp32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hasten.caching.patching import CALL, Border
from hasten.caching.trees import leaves, replace
from hasten.passes.target import floating_dtype

# Positions lose what they are in 8 bits, and models take them in fp32 whatever they compute in.
_POSITIONS = ("rotary", "freqs", "time_ids")
_METHODS = ("encode", "decode")


def install_border(module: nn.Module) -> Callable[[], None]:
    """Cast what comes into a module to its own format, and what goes out to that of what came in.

    Calls of the module, and of `encode` and `decode` where it has them. A timestep, being a number or one for each
    image, is left as it is: bf16 would make 1000 of 999.
    """
    around = partial(_cross, module)
    taps = [Border(module, CALL, around)]
    taps += [Border(module, name, around) for name in _METHODS if callable(getattr(module, name, None))]

    def undo() -> None:
        for tap in reversed(taps):
            tap.remove()

    return undo


def _cross(module: nn.Module, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    inside = floating_dtype(module)
    if inside is None:
        return inner(*args, **kwargs)
    outside = next((leaf.dtype for leaf in leaves((args, kwargs)) if _is_value(leaf)), inside)
    kept = {name: value for name, value in kwargs.items() if any(word in name for word in _POSITIONS)}
    kwargs = {name: value for name, value in kwargs.items() if name not in kept}
    values = {name: _cast(value, inside) for name, value in kwargs.items()}
    result = inner(*(_cast(value, inside) for value in args), **values, **kept)
    return result if outside is inside else _cast(result, outside)


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    try:
        return replace(tree, lambda tensor: tensor.to(dtype) if _is_value(tensor) else tensor)
    except TypeError:  # a distribution, or whatever else holds its tensors in its own way
        return tree


def _is_value(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.ndim > 1
