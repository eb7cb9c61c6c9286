"""A HunyuanVideo-1.5 of a few blocks, as model and as diffusers' own pipeline, both built from configs."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from torch import Tensor

import tiny

CHANNELS = 4
TEXT, TEXT_2 = 16, 12


def transformer(blocks: int = 4) -> HunyuanVideo15Transformer3DModel:
    model = HunyuanVideo15Transformer3DModel(
        in_channels=2 * CHANNELS + 1,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=blocks,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=TEXT,
        text_embed_2_dim=TEXT_2,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        target_size=32,
    )
    return tiny.random_(model, 7)


def pipeline(model: HunyuanVideo15Transformer3DModel) -> HunyuanVideo15Pipeline:
    """Guidance in two passes a step, no callback."""
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    pipe = HunyuanVideo15Pipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=model,
        vae=tiny.random_(vae, 8),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.vision_num_semantic_tokens = 2  # of 729
    return pipe


def prompts(seed: int, negative: bool = False) -> dict[str, Tensor]:
    """Embeddings as the pipeline takes them."""
    prefix = "negative_" if negative else ""
    return {
        f"{prefix}prompt_embeds": tiny.noise(1, 5, TEXT, seed=seed),
        f"{prefix}prompt_embeds_mask": torch.ones(1, 5),
        f"{prefix}prompt_embeds_2": tiny.noise(1, 3, TEXT_2, seed=seed + 1),
        f"{prefix}prompt_embeds_mask_2": torch.ones(1, 3),
    }


def call(steps: int, seed: int = 0) -> dict[str, Any]:
    """Arguments of the pipeline."""
    return {
        **prompts(1),
        **prompts(3, negative=True),
        "height": 16,
        "width": 16,
        "num_frames": 3,
        "num_inference_steps": steps,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }


def inputs(sample: Tensor, timestep: Tensor, seed: int = 1) -> dict[str, Any]:
    """Arguments of the model.

    Args:
        sample: (1, channels, frames, height, width).
    """
    text = prompts(seed)
    empty = torch.zeros(1, CHANNELS + 1, *sample.shape[2:])
    return {
        "hidden_states": torch.cat([sample, empty], dim=1),
        "timestep": timestep.expand(1),
        "encoder_hidden_states": text["prompt_embeds"],
        "encoder_attention_mask": text["prompt_embeds_mask"],
        "encoder_hidden_states_2": text["prompt_embeds_2"],
        "encoder_attention_mask_2": text["prompt_embeds_mask_2"],
        "image_embeds": torch.zeros(1, 2, 8),
        "return_dict": False,
    }
