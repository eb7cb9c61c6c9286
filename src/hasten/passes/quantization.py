"""The pass `quantization`: weights of linear layers in 8 or 4 bits, by torchao."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import PassError
from hasten.passes.change import Change, Done
from hasten.passes.journal import reversible
from hasten.passes.precision import kept_in_fp32
from hasten.passes.target import Target, bytes_of
from hasten.plan import Plan

NAME = "quantization"
# Schemes by their classes in torchao, and what they need.
_CONFIGS = {
    "int8": "Int8DynamicActivationInt8WeightConfig",
    "int8-weight-only": "Int8WeightOnlyConfig",
    "fp8": "Float8DynamicActivationFloat8WeightConfig",
    "fp8-weight-only": "Float8WeightOnlyConfig",
    "int4": "Int4WeightOnlyConfig",
}
_ON_CPU = ("int8", "int8-weight-only")


def quantization(target: Target, plan: Plan) -> Iterator[Change]:
    """Quantize the components that the plan names.

    Raises:
        PassError: no torchao, a scheme that this device cannot compute, or a component without linear layers.
    """
    wanted = _wanted(target, plan)
    if not wanted:
        return
    if importlib.util.find_spec("torchao") is None:
        raise PassError('quantization needs torchao: pip install "hasten[torchao]"')
    for name, scheme in wanted.items():
        if target.device.type == "cpu" and scheme not in _ON_CPU:
            raise PassError(f"quantization: {scheme} needs a GPU; on the CPU there are {', '.join(_ON_CPU)}")
        part = target.modules[name]
        chosen = layers_of(part, tuple(plan.quantization.exclude or ()))
        if not chosen:
            raise PassError(f"quantization: {name} ({type(part).__name__}) has no linear layers that are not excluded")
        linear = sum(isinstance(module, nn.Linear) for module in part.modules())
        what = f"{scheme} in {len(chosen)} of {linear} linear layers"
        yield Change(NAME, name, what, partial(_quantize, part, scheme, chosen))


def _wanted(target: Target, plan: Plan) -> dict[str, str]:
    section = plan.quantization
    found: dict[str, str] = {}
    if section.on:
        if section.scheme is not None:
            found |= dict.fromkeys(target.named("quantization.scheme", "denoiser"), section.scheme)
        found |= target.per_component("quantization", section, section.COMPONENTS)
    as_formats = target.per_component("precision", plan.precision, plan.precision.COMPONENTS)
    return {name: "int8" for name, value in as_formats.items() if value == "int8"} | found


def layers_of(part: nn.Module, exclude: tuple[str, ...] = ()) -> dict[str, nn.Linear]:
    """The linear layers to quantize, by name: without those that a model or diffusers holds to be delicate.

    Args:
        exclude: regular expressions for names that are left out, too.
    """
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    delicate = (
        *DEFAULT_SKIP_MODULES_PATTERN,
        *(getattr(part, "_skip_layerwise_casting_patterns", None) or ()),
        *exclude,
    )
    kept = kept_in_fp32(part, torch.float16)
    return {
        name: module
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear)
        and not any(re.search(pattern, name) for pattern in delicate)
        and not kept(f"{name}.weight")
    }


def _quantize(part: nn.Module, scheme: str, chosen: dict[str, nn.Linear]) -> Done:
    with _quiet():
        from torchao import quantization as torchao

        config = getattr(torchao, _CONFIGS[scheme])()
    before, originals = bytes_of(part), {name: layer.weight.detach() for name, layer in chosen.items()}

    def operation() -> None:
        with _quiet():
            torchao.quantize_(part, config, filter_fn=lambda module, name: name in chosen)

    try:
        undo = reversible(part, operation, weights=True)
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        raise PassError(f"quantization: torchao refuses {scheme} for {type(part).__name__}: {error}") from error
    difference = weight_error(originals, {name: layer.weight for name, layer in chosen.items()})
    return Done(undo, {"bytes_before": before, "bytes_after": bytes_of(part), "weight_error": f"{difference:.2%}"})


def weight_error(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """The relative difference of all weights together: ‖Ŵ − W‖ / ‖W‖."""
    difference = norm = 0.0
    for name, weight in before.items():
        now: Any = after[name]
        plain = now.dequantize() if hasattr(now, "dequantize") else now
        difference += float((plain.float() - weight.float()).square().sum())
        norm += float(weight.float().square().sum())
    return (difference / max(norm, 1e-30)) ** 0.5


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torchao tells of every kernel for other machines that it cannot load here."""
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
