"""The pass `attention`: which kernel computes it, in slices or at once, fused projections, and the order in memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hasten.caching.patching import CALL, Border
from hasten.errors import PassError
from hasten.passes.change import Change, Done
from hasten.passes.journal import reversible
from hasten.passes.target import Target, floating_dtype
from hasten.plan import Plan

NAME = "attention"
KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def fuse(target: Target, plan: Plan) -> Iterator[Change]:
    """Project queries, keys and values at once; before quantization, which has to see the fused weights."""
    if plan.attention.fused_qkv:
        for name in target.denoisers:
            what = "queries, keys and values projected at once"
            yield Change(NAME, name, what, partial(_fuse, name, target.modules[name]))


def attention(target: Target, plan: Plan) -> Iterator[Change]:
    """Change how denoisers, and with channels-last the VAE, compute.

    Raises:
        PassError: a kernel or backend that this machine does not have, or that the model has no use for.
    """
    section = plan.attention
    for name in target.denoisers:
        part = target.modules[name]
        if section.kernel is not None:
            _check_kernel(section.kernel, target.device, floating_dtype(part) or torch.float32)
            yield Change(
                NAME, name, f"torch's kernel {section.kernel}", partial(_choose, part, KERNELS[section.kernel])
            )
        if section.backend is not None:
            processors = _dispatched(name, part, section.backend)
            what = f"diffusers' backend {section.backend} in {len(processors)} layers"
            yield Change(NAME, name, what, partial(_dispatch, processors, section.backend))
        if section.slicing is not None:
            if not hasattr(part, "set_attention_slice"):
                raise PassError(f"attention.slicing: {name} ({type(part).__name__}) cannot compute attention in slices")
            yield Change(NAME, name, f"in slices ({section.slicing})", partial(_slice, part, section.slicing))
    if section.channels_last:
        parts = {name: target.modules[name] for name in target.modules if name in (*target.denoisers, "vae")}
        convolving = [name for name, part in parts.items() if any(isinstance(m, nn.Conv2d) for m in part.modules())]
        if not convolving:
            raise PassError(f"attention.channels_last: {target.title} has no two-dimensional convolutions")
        for name in convolving:
            yield Change(NAME, name, "channels last in memory", partial(_channels_last, parts[name]))


def _fuse(name: str, part: nn.Module) -> Done:
    fuse = getattr(part, "fuse_qkv_projections", None)
    undo = reversible(part, fuse or (lambda: None))
    fused = [layer for layer in part.modules() if hasattr(layer, "to_qkv") or hasattr(layer, "to_kv")]
    if not fused:
        undo()
        raise PassError(f"attention.fused_qkv: {name} ({type(part).__name__}) has no layers that can be fused")
    return Done(undo, {"layers": len(fused)})


def _slice(part: Any, size: str | int) -> Done:
    return Done(reversible(part, partial(part.set_attention_slice, size)))


def _check_kernel(kernel: str, device: torch.device, dtype: torch.dtype) -> None:
    if not _works(kernel, device, dtype):
        usable = ", ".join(name for name in KERNELS if _works(name, device, dtype))
        raise PassError(
            f"attention.kernel: {kernel!r} is not to be had on {device} in {str(dtype)[6:]}; usable here: {usable}"
        )


def _works(kernel: str, device: torch.device, dtype: torch.dtype) -> bool:
    tensor = torch.ones(1, 1, 8, 64, device=device, dtype=dtype)
    try:
        with warnings.catch_warnings(), sdpa_kernel(KERNELS[kernel]):
            warnings.simplefilter("ignore")  # torch tells each kernel's reasons as a warning
            nn.functional.scaled_dot_product_attention(tensor, tensor, tensor)
    except RuntimeError:
        return False
    return True


def _choose(part: nn.Module, kernel: SDPBackend) -> Done:
    def around(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return inner(*args, **kwargs)

    tap = Border(part, CALL, around)
    return Done(tap.remove)


def _dispatched(name: str, part: nn.Module, backend: str) -> list[Any]:
    """The layers that ask diffusers for their kernel, and a check that it has this one."""
    from diffusers.models import attention_dispatch

    known = [member.value for member in attention_dispatch.AttentionBackendName]
    if backend not in known:
        near = get_close_matches(backend, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PassError(f"attention.backend: diffusers has no {backend!r}{hint} (it has {', '.join(known)})")
    try:
        attention_dispatch._check_attention_backend_requirements(attention_dispatch.AttentionBackendName(backend))
    except (RuntimeError, ImportError) as error:
        raise PassError(f"attention.backend: {error}") from None
    found = [getattr(module, "processor", None) for module in part.modules()]
    processors = [processor for processor in found if hasattr(processor, "_attention_backend")]
    if not processors:
        raise PassError(
            f"attention.backend: {name} ({type(part).__name__}) does not choose its kernels by diffusers' backends; "
            "attention.kernel chooses among torch's"
        )
    return processors


def _dispatch(processors: list[Any], backend: str) -> Done:
    from diffusers.models.attention_dispatch import AttentionBackendName, _maybe_download_kernel_for_backend

    try:
        _maybe_download_kernel_for_backend(AttentionBackendName(backend))
    except Exception as error:
        raise PassError(f"attention.backend: {backend!r} cannot be fetched from the hub: {error}") from error
    undos = []
    for processor in processors:
        # One by one: the model's own method also sets it for all other models of the process.
        undos.append(
            reversible(processor, partial(setattr, processor, "_attention_backend", AttentionBackendName(backend)))
        )

    def undo() -> None:
        for one in reversed(undos):
            one()

    return Done(undo)


def _channels_last(part: nn.Module) -> Done:
    def operation() -> None:
        for parameter in part.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.to(memory_format=torch.channels_last)

    return Done(reversible(part, operation, weights=True))
