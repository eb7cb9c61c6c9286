"""How much memory a denoiser's call takes beside its weights: an estimate from its sizes, before anything is run."""

from __future__ import annotations

from typing import Any

from torch import nn

from hasten.passes.target import floating_dtype

_RESIDUALS = 4  # what comes into a block, its norm, what is added to it, and the sum
_WORKING = 6  # feature maps that a residual layer of a UNet holds at a time


def estimate(part: nn.Module, rows: int, columns: int, latent_channels: int | None, batch: int) -> float:
    """Bytes of the activations at their peak, attention's scores not among them: no kernel but `math` makes these.

    Args:
        rows, columns: of the latents.
        latent_channels: of the VAE; a denoiser that takes four times as many gets 2 × 2 of them as one token.
        batch: samples in one call.
    """
    config = dict(getattr(part, "config", {}))
    dtype = floating_dtype(part)
    size = dtype.itemsize if dtype is not None else 4
    levels = config.get("block_out_channels")
    if levels:
        return batch * size * rows * columns * _of_unet(part, config, levels)
    packed = latent_channels is not None and config.get("in_channels") == 4 * latent_channels
    patch = config.get("patch_size") or 1
    side = 2 if packed else patch if isinstance(patch, int) else patch[-1]
    return batch * size * (rows // side) * (columns // side) * _of_transformer(part, config)


def _of_transformer(part: nn.Module, config: dict[str, Any]) -> float:
    """Numbers for each token: the residual stream, and either queries, keys and values or the feed-forward network."""
    heads, per = config.get("num_attention_heads"), config.get("attention_head_dim")
    if isinstance(heads, int) and isinstance(per, int):
        width = heads * per
    else:
        width = max((module.in_features for module in part.modules() if isinstance(module, nn.Linear)), default=0)
    return _RESIDUALS * width + max(4 * width, 2 * _inner(part, width))


def _of_unet(part: nn.Module, config: dict[str, Any], levels: list[int]) -> float:
    """Numbers for each latent: the skip connections that wait, and what the finest level works with."""
    count = config.get("layers_per_block") or 2
    counts = [count] * len(levels) if isinstance(count, int) else list(count)
    waiting = sum((n + 1) * c / 4**level for level, (c, n) in enumerate(zip(levels, counts, strict=True)))
    first, *_ = config.get("down_block_types") or [""]
    attends = _RESIDUALS * levels[0] + 2 * _inner(part, levels[0]) if "Attn" in first else 0
    return waiting + max(_WORKING * levels[0], attends)


def _inner(part: nn.Module, width: int) -> int:
    """The width inside of feed-forward networks, gates included."""
    layers = (module for module in part.modules() if isinstance(module, nn.Linear) and module.in_features == width)
    return max((layer.out_features for layer in layers if layer.out_features <= 8 * width), default=0)
