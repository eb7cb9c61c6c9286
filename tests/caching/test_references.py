"""Beside diffusers' own hooks for the same methods: the same steps, and equal latents where the mathematics agrees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from torch import Tensor

import tiny
from hasten import accelerate

STEPS = 12


@contextmanager
def hooked(pipe: Any, config: Any) -> Iterator[None]:
    """diffusers' own cache at work."""
    pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


def latents(pipe: Any, call: dict[str, Any]) -> Tensor:
    return pipe(**call, return_dict=False)[0]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("lite", [False, True])
def test_taylorseer(lite: bool, order: int) -> None:
    pipe = tiny.flux(2, 1)
    config = TaylorSeerCacheConfig(
        cache_interval=3,
        disable_cache_before_step=3,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=lite,
    )
    with hooked(pipe, config):
        reference = latents(pipe, tiny.flux_call(STEPS))
    # diffusers counts the interval from the step after the warm-up on: 3, then 4, 7, 10.
    computed = [0, 1, 2, 4, 7, 10]
    site = "output" if lite else "attention"
    options: dict[str, Any] = {"site": site, "predictor": "taylor", "order": order, "mask": computed, "cooldown": 0}
    with accelerate(pipe, "taylorseer", **options) as handle:
        ours = latents(pipe, tiny.flux_call(STEPS))
    assert [step.index for step in handle.report().steps if step.computed] == computed
    assert torch.allclose(ours, reference, atol=1e-4)


def test_pyramid_attention_broadcast() -> None:
    pipe = tiny.flux(2, 1)
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: pipe._current_timestep,
    )
    with hooked(pipe, config):
        reference = latents(pipe, tiny.flux_call(STEPS))
    with accelerate(pipe, "pab", interval=2):
        ours = latents(pipe, tiny.flux_call(STEPS))
    assert torch.allclose(ours, reference, atol=1e-4)
    assert not torch.allclose(ours, latents(pipe, tiny.flux_call(STEPS)), atol=1e-4)


def test_diffusers_taylorseer_hooks_no_module_of_wan_and_ours_does() -> None:
    pipe = tiny.wan()
    plain = latents(pipe, tiny.wan_call(STEPS))
    with hooked(pipe, TaylorSeerCacheConfig(cache_interval=3)):
        assert torch.equal(latents(pipe, tiny.wan_call(STEPS)), plain)
    with accelerate(pipe, "taylorseer", site="attention") as handle:
        assert not torch.equal(latents(pipe, tiny.wan_call(STEPS)), plain)
    assert handle.report().skipped > 0


def test_fastercache_without_guidance() -> None:
    pipe = tiny.flux(2, 1)

    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 681),
        attention_weight_callback=lambda _: 0.0,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe._current_timestep,
    )
    with hooked(pipe, config):
        reference = latents(pipe, tiny.flux_call(STEPS))
    with accelerate(pipe, "fastercache", site="attention", damping=0.0):
        ours = latents(pipe, tiny.flux_call(STEPS))
    assert torch.allclose(ours, reference, atol=1e-4)
