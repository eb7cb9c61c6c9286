"""The pass `precision`: number formats per component, weights stored in fp8, and the borders between formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hasten.devices import DTYPES, first_missing_operation
from hasten.errors import PassError
from hasten.passes.casting import install_border
from hasten.passes.change import Change, Done
from hasten.passes.journal import reversible
from hasten.passes.target import Target, bytes_of, floating_dtype
from hasten.plan import Plan

NAME = "precision"
STORED: dict[str, torch.dtype] = {"fp8": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}


def precision(target: Target, plan: Plan) -> Iterator[Change]:
    """Cast components to the plan's formats; `auto` leaves them in those they have.

    Raises:
        PassError: a component that is not there, or a format that the device cannot compute in.
    """
    wanted = _wanted(target, plan)
    for key in {name for name in wanted.values() if name in DTYPES}:
        failure = None if key == "fp32" else first_missing_operation(DTYPES[key], target.device)
        if failure:
            raise PassError(f"precision: {key} cannot be used on {target.device}: {failure}")
    before = {name: dtype for name, part in target.modules.items() if (dtype := floating_dtype(part)) is not None}
    after = dict(before)
    for name, key in wanted.items():
        if name not in before:
            continue
        part, old = target.modules[name], before[name]
        if key == "int8":  # that is done by the pass quantization
            key = plan.precision.dtype if plan.precision.dtype != "auto" else _word(old)
        new = _upcast(part, _computed_in(plan, key, old))
        after[name] = new
        if key in STORED:
            what = f"stored as {key}, computed in {_word(new)} (was {_word(old)})"
            yield Change(NAME, name, what, partial(_store, part, STORED[key], new, target.keeps))
        elif new is not old:
            refused = f"; {key} was asked for, and this VAE overflows in it" if new is not DTYPES[key] else ""
            yield Change(
                NAME, name, f"{_word(new)} (was {_word(old)}){refused}", partial(_convert, part, new, target.keeps)
            )
        elif new is not DTYPES.get(key, new):
            yield Change(NAME, name, f"stays {_word(new)}: {key} was asked for, and this VAE overflows in it")
    if after != before or len(set(after.values())) > 1:
        for name in after:
            yield Change(NAME, name, "", partial(_border, target.modules[name]))
    if plan.precision.tf32 is not None:
        yield _tf32(target, on=plan.precision.tf32)


def _wanted(target: Target, plan: Plan) -> dict[str, str]:
    section = plan.precision
    general = {} if section.dtype == "auto" else dict.fromkeys(target.modules, str(section.dtype))
    return general | target.per_component("precision", section, section.COMPONENTS)


def _computed_in(plan: Plan, key: str, old: torch.dtype) -> torch.dtype:
    return DTYPES.get(key) or DTYPES.get(plan.precision.dtype) or old


def _upcast(part: nn.Module, dtype: torch.dtype) -> torch.dtype:
    """fp32 where a VAE says that its activations leave the range of fp16."""
    needed = dtype is torch.float16 and bool(getattr(getattr(part, "config", None), "force_upcast", False))
    return torch.float32 if needed else dtype


def _word(dtype: torch.dtype) -> str:
    return next((word for word, known in DTYPES.items() if known is dtype), str(dtype).removeprefix("torch."))


def _border(part: nn.Module) -> Done:
    return Done(install_border(part))


def _convert(part: nn.Module, dtype: torch.dtype, keeps: bool) -> Done:
    before = bytes_of(part)
    undo = reversible(part, partial(cast_weights, part, dtype), weights=True, keeps=keeps)
    return Done(undo, {"bytes_before": before, "bytes_after": bytes_of(part)})


def cast_weights(part: nn.Module, dtype: torch.dtype) -> None:
    """As if the module had been loaded in this format.

    What the model keeps in fp32 stays there; so do buffers that are computed and not loaded, such as the frequencies
    of rotary positions, which `module.to(dtype)` would ruin.
    """
    kept = kept_in_fp32(part, dtype)
    for path, module in part.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if not _is_plain_float(tensor) or name in module._non_persistent_buffers_set:
                continue
            own = torch.float32 if kept(f"{path}.{name}".lstrip(".")) else dtype
            tensor.data = tensor.data.to(own)


def _is_plain_float(tensor: Any) -> bool:
    # Quantized weights are subclasses that call themselves floating-point.
    return isinstance(tensor, Tensor) and type(tensor.data) is Tensor and tensor.is_floating_point()


def kept_in_fp32(part: nn.Module, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether a parameter stays in fp32 whatever the module is cast to: the model's own list, by parts of names."""
    if dtype is torch.float32:
        return lambda name: False
    patterns = [*(getattr(part, "_keep_in_fp32_modules_strict", None) or ())]
    # transformers means this list for fp16 alone, diffusers for every format.
    if dtype is torch.float16 or not hasattr(part, "_keep_in_fp32_modules_strict"):
        patterns += getattr(part, "_keep_in_fp32_modules", None) or ()
    found = [re.compile(rf"(^|\.){re.escape(pattern)}($|\.)") for pattern in patterns]
    return lambda name: any(pattern.search(name) for pattern in found)


def _store(part: nn.Module, storage: torch.dtype, compute: torch.dtype, keeps: bool) -> Done:
    from diffusers.hooks import apply_layerwise_casting
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    # Pipelines ask text encoders for their format, which these read off their first weight: the embedding.
    skipped = (
        *DEFAULT_SKIP_MODULES_PATTERN,
        *(() if hasattr(part, "enable_layerwise_casting") else ("embed", "shared")),
    )
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict", "_skip_layerwise_casting_patterns"):
        skipped += tuple(getattr(part, attribute, None) or ())
    before = bytes_of(part)

    def operation() -> None:
        cast_weights(part, compute)
        apply_layerwise_casting(part, storage, compute, skip_modules_pattern=skipped)

    undo = reversible(part, operation, weights=True, keeps=keeps)
    return Done(undo, {"bytes_before": before, "bytes_after": bytes_of(part)})


def _tf32(target: Target, *, on: bool) -> Change:
    word = "on" if on else "off"
    if target.device.type != "cuda":
        return Change(NAME, "pipeline", f"TF32 {word}: no effect on {target.device.type}")

    def make() -> Done:
        backends: Any = torch.backends
        places = (backends.cuda.matmul, backends.cudnn.conv)
        before = [place.fp32_precision for place in places]
        for place in places:
            place.fp32_precision = "tf32" if on else "ieee"

        def undo() -> None:
            for place, value in zip(places, before, strict=True):
                place.fp32_precision = value

        return Done(undo)

    return Change(NAME, "pipeline", f"TF32 {word}", make)
