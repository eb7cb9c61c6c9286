"""Which memory settings keep a pipeline under a limit: the cheapest that do, by an estimate that is told."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from hasten.errors import PassError
from hasten.passes.activations import estimate
from hasten.passes.target import Target, bytes_of, floating_dtype
from hasten.plan import Plan
from hasten.plan.speed import Memory

_DEFAULT_SIZE = 1024  # pixels, where neither the plan nor the VAE says
_MAPS = 4  # feature maps of full size that a decoder's last level holds at a time


class Choice(NamedTuple):
    """Settings that fit.

    Attributes:
        text: which, and what they take, in words.
    """

    settings: Memory
    text: str


class _Option(NamedTuple):
    words: str
    settings: Memory
    bytes: float


def choose(target: Target, plan: Plan, limit: float, *, has_accelerator: bool) -> Choice:
    """The first of the ways to save memory, the cheapest first, whose estimate is under the limit.

    The estimate is of weights and of what is the larger of the denoiser's activations and the decoder's feature maps:
    they follow each other. It is made from sizes; nothing is run.

    Args:
        limit: in bytes.

    Raises:
        PassError: nothing keeps it; with what each would take.
    """
    options = list(_options(target, plan, has_accelerator=has_accelerator))
    for option in options:
        if option.bytes <= limit:
            return Choice(option.settings, f"{option.words}, estimated {option.bytes / 2**30:.2f} GiB")
    tried = "; ".join(f"{option.words} {option.bytes / 2**30:.2f} GiB" for option in options)
    raise PassError(f"memory.limit: {limit / 2**30:.2f} GiB are too little for {target.title} ({tried})")


def _options(target: Target, plan: Plan, *, has_accelerator: bool) -> Iterator[_Option]:
    weights = {name: bytes_of(part) for name, part in target.modules.items()}
    text = sum(size for name, size in weights.items() if "text_encoder" in name)
    everything = sum(weights.values())
    whole, tiled = _decoding(target, plan)
    busy = _denoising(target, plan)
    tiles: dict[str, Any] = {"vae_tiling": True, "vae_slicing": True} if tiled < whole > busy else {}
    whole, tiled = max(whole, busy), max(tiled, busy)
    yield _Option("nothing to do", Memory(), everything + whole)
    if tiles:
        yield _Option("VAE in tiles", Memory(**tiles), everything + tiled)
    steps = " and VAE in tiles" if tiles else ""
    largest = max((_leaf(part) for part in target.modules.values()), default=0)
    if not has_accelerator:
        disk = plan.memory.disk or Path(tempfile.gettempdir())
        if text:
            settings = Memory(free_text_encoder=True, disk=disk, **tiles)
            yield _Option(f"text encoder on disk{steps}", settings, everything - text + tiled)
        yield _Option(f"weights on disk{steps}", Memory(offload="group", disk=disk, **tiles), largest + tiled)
        return
    part = max(size + (0 if "text_encoder" in name else tiled) for name, size in weights.items())
    if target.is_pipeline:
        yield _Option(f"offload: model{steps}", Memory(offload="model", **tiles), part)
    stream = target.device.type == "cuda"
    grouped = Memory(offload="group", group="leaf", stream=stream or None, **tiles)
    yield _Option(f"offload: group{steps}", grouped, 2 * largest + tiled)


def _leaf(part: nn.Module) -> int:
    sizes = (sum(p.numel() * p.element_size() for p in module.parameters(recurse=False)) for module in part.modules())
    return max(sizes, default=0)


def _denoising(target: Target, plan: Plan) -> float:
    """Bytes that one call of a denoiser takes beside its weights; guidance in the batch is counted where UNets are."""
    vae: Any = target.modules.get("vae")
    channels = getattr(getattr(vae, "config", None), "latent_channels", None) or getattr(
        getattr(vae, "config", None), "z_dim", None
    )
    scale = getattr(target.pipe, "vae_scale_factor", None) or 8
    width, height = (int(getattr(plan.generation, side) or _DEFAULT_SIZE) // scale for side in ("width", "height"))
    batches = {name: 2 if name.startswith("unet") else 1 for name in target.denoisers}
    sizes = (estimate(target.modules[name], height, width, channels, batch) for name, batch in batches.items())
    return max(sizes, default=0.0)


def _decoding(target: Target, plan: Plan) -> tuple[float, float]:
    """Bytes that decoding one image takes, at once and in tiles."""
    vae: Any = target.modules.get("vae")
    if vae is None:
        return 0.0, 0.0
    config = dict(getattr(vae, "config", {}))
    channels = (config.get("block_out_channels") or [config.get("base_dim") or 128])[0]
    dtype = floating_dtype(vae)
    each = _MAPS * channels * (dtype.itemsize if dtype is not None else 4)
    width, height = (getattr(plan.generation, side) or _DEFAULT_SIZE for side in ("width", "height"))
    tile = getattr(vae, "tile_sample_min_size", None) or getattr(vae, "tile_sample_min_width", None) or 0
    whole = each * width * height
    return whole, min(whole, each * tile * tile) if tile and hasattr(vae, "enable_tiling") else whole
