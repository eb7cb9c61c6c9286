"""The pass `quantization`: weights of linear layers in 8 or 4 bits, by torchao."""

from __future__ import annotations

import importlib.util
import re
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
from hasten.plan import Plan, Quantization
from hasten.quiet import without_torchaos_noise

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
    if plan.quantization.on and plan.quantization.loader is not None:
        yield from _by_loader(target, plan.quantization)
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
        yield Change(NAME, name, what, partial(_quantize, part, scheme, chosen, target.keeps))


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


def _quantize(part: nn.Module, scheme: str, chosen: dict[str, nn.Linear], keeps: bool) -> Done:
    with without_torchaos_noise():
        from torchao import quantization as torchao

        config = getattr(torchao, _CONFIGS[scheme])()
    before = bytes_of(part)
    squares = [0.0, 0.0]

    def operation() -> None:
        # One by one, so that no more than one layer is there twice.
        for layer in chosen.values():
            weight = layer.weight.detach()
            with without_torchaos_noise():
                torchao.quantize_(layer, config)
            squares[:] = map(sum, zip(squares, error_squares(weight, layer.weight), strict=True))

    try:
        undo = reversible(part, operation, weights=True, keeps=keeps)
    except (RuntimeError, ValueError, AssertionError, NotImplementedError) as error:
        raise PassError(f"quantization: torchao refuses {scheme} for {type(part).__name__}: {error}") from error
    difference = (squares[0] / max(squares[1], 1e-30)) ** 0.5
    return Done(undo, {"bytes_before": before, "bytes_after": bytes_of(part), "weight_error": f"{difference:.2%}"})


def error_squares(before: Tensor, after: Any) -> tuple[float, float]:
    """‖Ŵ − W‖² and ‖W‖² of one layer; over all layers, the root of their ratio is the relative error."""
    plain = after.dequantize() if hasattr(after, "dequantize") else after
    difference = plain.float() - before.float()
    return float(difference.square().sum()), float(before.float().square().sum())


def _by_loader(target: Target, section: Quantization) -> Iterator[Change]:
    """What was quantized while it was loaded."""
    for name in section.components or target.denoisers:
        part = target.modules[target.named("quantization.components", name)[0]]
        if getattr(part, "hf_quantizer", None) is None and not getattr(part, "is_quantized", False):
            raise PassError(
                f"quantization.loader: {name} was loaded without it. {section.loader} quantizes while a model is "
                "loaded: hasten.loading.load(plan), hasten.generate(plan, …) and hasten generate do so"
            )
        yield Change(
            NAME,
            name,
            f"by {section.loader}, while it was loaded",
            partial(Done, lambda: None, {"bytes": bytes_of(part)}),
        )
