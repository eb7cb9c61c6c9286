"""Attention: kernels, backends, slices and fused projections are what they say, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from hasten import accelerate
from hasten.errors import PassError
from passes.states import state


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny.stable_diffusion()


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny.qwen(2)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"kernel": "math"}, "torch's kernel math"),
        ({"slicing": "auto"}, "in slices (auto)"),
        ({"slicing": 2}, "in slices (2)"),
        ({"fused_qkv": True}, "queries, keys and values projected at once, layers "),
        ({"channels_last": True}, "channels last in memory"),
    ],
)
def test_the_image_is_the_same_up_to_rounding(sd: Any, settings: dict[str, Any], what: str) -> None:
    plain = sd(**tiny.stable_diffusion_call(steps=2)).images
    before = state(sd)
    with accelerate(sd, "none", attention=settings) as handle:
        result = sd(**tiny.stable_diffusion_call(steps=2)).images
        assert f"attention: unet: {what}" in str(handle.report())
    assert torch.allclose(result, plain, atol=1e-3)
    assert state(sd) == before
    assert torch.equal(sd(**tiny.stable_diffusion_call(steps=2)).images, plain)


def test_diffusers_backends_are_set_on_this_model_alone(qwen: Any) -> None:
    other = tiny.qwen(2)
    plain = qwen(**tiny.qwen_call(steps=2)).images
    with accelerate(qwen, "none", attention="_native_math") as handle:
        result = qwen(**tiny.qwen_call(steps=2)).images
        used = {block.attn.processor._attention_backend for block in qwen.transformer.transformer_blocks}
        assert {backend.value for backend in used} == {"_native_math"}
        assert {block.attn.processor._attention_backend for block in other.transformer.transformer_blocks} == {None}
        assert "diffusers' backend _native_math in 2 layers" in str(handle.report())
    assert torch.allclose(result, plain, atol=1e-4)
    assert {block.attn.processor._attention_backend for block in qwen.transformer.transformer_blocks} == {None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "flash"}, "attention.backend: Flash Attention backend 'flash' is not usable because of missing"),
        ({"backend": "xformers"}, "attention.backend: Xformers Attention backend 'xformers' is not usable"),
        ({"backend": "flesh"}, r"attention.backend: diffusers has no 'flesh'; did you mean 'flash'\?"),
        ({"kernel": "cudnn"}, "'cudnn' is not to be had on cpu in float32; usable here: math, flash"),
        ({"slicing": "max"}, r"attention.slicing: transformer \(QwenImageTransformer2DModel\) cannot compute"),
        ({"fused_qkv": True}, r"attention.fused_qkv: transformer \(QwenImageTransformer2DModel\) has no layers"),
    ],
)
def test_what_cannot_be_had_is_refused_and_nothing_is_touched(qwen: Any, settings: Any, message: str) -> None:
    before = state(qwen)
    with pytest.raises(PassError, match=message):
        accelerate(qwen, "none", attention=settings)
    assert state(qwen) == before


def test_channels_last_is_refused_where_nothing_convolves(qwen: Any) -> None:
    with pytest.raises(PassError, match="QwenImageTransformer2DModel has no two-dimensional convolutions"):
        accelerate(qwen.transformer, "none", attention={"channels_last": True})


def test_a_unet_does_not_choose_by_diffusers_backends_and_says_so(sd: Any) -> None:
    with pytest.raises(
        PassError, match=r"does not choose its kernels by diffusers' backends; attention\.kernel chooses"
    ):
        accelerate(sd, "none", attention="native")
