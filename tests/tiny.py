"""Small pipelines built from configs: random weights, fixed seeds, nothing downloaded.

They take embeddings in place of prompts, so none needs a text encoder.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatteTransformer3DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor, nn

SIZE = 32  # pixels
TEXT = 7  # tokens


def random_(module: nn.Module, seed: int, scale: float = 1.0) -> nn.Module:
    """Fill all parameters so that signals neither die nor explode, zero-initialised layers included."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.numel() and parameter.ndim > 1:
                parameter.normal_(0, scale / parameter[0].numel() ** 0.5, generator=generator)
            else:
                # the weight of a norm, or a bias
                parameter.normal_(float(name.endswith("weight")), 0.1, generator=generator)
    return module.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def qwen_transformer(blocks: int = 4, seed: int = 1, **config: Any) -> QwenImageTransformer2DModel:
    model = QwenImageTransformer2DModel(
        **{
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": blocks,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "axes_dims_rope": (4, 6, 6),
            **config,
        }
    )
    return random_(model, seed)


@cache
def _qwen_vae() -> AutoencoderKLQwenImage:
    # Two levels: eight pixels to a latent in the pipeline's arithmetic come from `temperal_downsample`.
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return random_(vae, 2)


def qwen(blocks: int = 4, seed: int = 1, scheduler: Any = None, **config: Any) -> QwenImagePipeline:
    """The class of the bundled model: two calls a step, conditional and unconditional."""
    pipe = QwenImagePipeline(
        transformer=qwen_transformer(blocks, seed, **config),
        vae=_qwen_vae(),
        text_encoder=None,
        tokenizer=None,
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def qwen_call(steps: int = 12, batch: int = 1, guided: bool = True, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Arguments for a call of `qwen()`."""
    call = {
        "prompt_embeds": noise(batch, TEXT, 24, seed=seed + 10),
        "prompt_embeds_mask": torch.ones(batch, TEXT, dtype=torch.long),
        "num_inference_steps": steps,
        "height": SIZE,
        "width": SIZE,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        "true_cfg_scale": 3.0 if guided else 1.0,
    }
    if guided:
        call |= {
            "negative_prompt_embeds": noise(batch, TEXT - 2, 24, seed=seed + 20),
            "negative_prompt_embeds_mask": torch.ones(batch, TEXT - 2, dtype=torch.long),
        }
    return call | more


def unet(layers: int = 2, seed: int = 3, **config: Any) -> UNet2DConditionModel:
    """Three levels, cross-attention on two of them."""
    model = UNet2DConditionModel(
        **{
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (8, 16, 24),
            "layers_per_block": layers,
            "norm_num_groups": 4,
            "cross_attention_dim": 24,
            "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            **config,
        }
    )
    return random_(model, seed)


def stable_diffusion(scheduler: Any = None, seed: int = 3, layers: int = 1) -> StableDiffusionPipeline:
    """A UNet with skip connections: one call a step, guidance in the batch."""
    model = unet(
        layers,
        seed,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
    )
    pipe = StableDiffusionPipeline(
        unet=model,
        vae=random_(vae, seed + 1),
        text_encoder=None,
        tokenizer=None,
        scheduler=scheduler or DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear", steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_call(steps: int = 12, batch: int = 1, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Arguments for a call of `stable_diffusion()`."""
    return {
        "prompt_embeds": noise(batch, TEXT, 24, seed=seed + 10),
        "negative_prompt_embeds": noise(batch, TEXT, 24, seed=seed + 20),
        "num_inference_steps": steps,
        "height": 64,
        "width": 64,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        "guidance_scale": 3.0,
    } | more


def ip_adapter(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The weights of an IP-Adapter for a UNet: a projection, and a key and a value for each cross-attention."""
    width, dim = 24, 12
    weights: dict[str, Tensor] = {}
    crosses = [module for name, module in model.named_modules() if name.endswith("attn2")]
    for number, attention in enumerate(crosses):
        shape = (attention.to_k.weight.shape[0], width)
        weights[f"{2 * number + 1}.to_k_ip.weight"] = noise(*shape, seed=number) / width**0.5
        weights[f"{2 * number + 1}.to_v_ip.weight"] = noise(*shape, seed=number + 50) / width**0.5
    projection = {
        "proj.weight": noise(4 * width, dim) / dim**0.5,
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": weights}


def flux(blocks: int = 2, single_blocks: int = 3, seed: int = 4) -> FluxPipeline:
    """Two lists of blocks of different classes, one after the other."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=blocks,
        num_single_layers=single_blocks,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        shift_factor=0.0,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    pipe = FluxPipeline(
        transformer=random_(transformer, seed),
        vae=random_(vae, seed + 1),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux_call(steps: int = 12, batch: int = 1, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Arguments for a call of `flux()`."""
    return {
        "prompt_embeds": noise(batch, TEXT, 24, seed=seed + 10),
        "pooled_prompt_embeds": noise(batch, 12, seed=seed + 11),
        "num_inference_steps": steps,
        "height": SIZE,
        "width": SIZE,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    } | more


def wan(seed: int = 5) -> WanPipeline:
    """Two denoisers: the second takes over at low noise."""

    def transformer(seed: int) -> nn.Module:
        model = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=24,
            freq_dim=16,
            ffn_dim=32,
            num_layers=3,
            cross_attn_norm=True,
            rope_max_seq_len=32,
        )
        return random_(model, seed)

    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipe = WanPipeline(
        transformer=transformer(seed),
        transformer_2=transformer(seed + 1),
        vae=random_(vae, seed + 2),
        text_encoder=None,
        tokenizer=None,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
        boundary_ratio=0.6,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_call(steps: int = 12, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Arguments for a call of `wan()`."""
    return {
        "prompt_embeds": noise(1, TEXT, 24, seed=seed + 10),
        "negative_prompt_embeds": noise(1, TEXT, 24, seed=seed + 20),
        "num_inference_steps": steps,
        "height": SIZE,
        "width": SIZE,
        "num_frames": 5,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        "guidance_scale": 3.0,
    } | more


def cogvideox(blocks: int = 3, seed: int = 7) -> CogVideoXPipeline:
    """A video model with guidance in the batch; it has no VAE, and so makes latents only."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=24,
        num_layers=blocks,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=TEXT,
    )
    pipe = CogVideoXPipeline(
        transformer=random_(transformer, seed),
        scheduler=CogVideoXDDIMScheduler(timestep_spacing="trailing"),
        vae=None,
        text_encoder=None,
        tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cogvideox_call(steps: int = 12, seed: int = 0, **more: Any) -> dict[str, Any]:
    """Arguments for a call of `cogvideox()`."""
    return {
        "prompt_embeds": noise(1, TEXT, 24, seed=seed + 10),
        "negative_prompt_embeds": noise(1, TEXT, 24, seed=seed + 20),
        "num_inference_steps": steps,
        "height": 64,
        "width": 64,
        "num_frames": 5,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
        "guidance_scale": 3.0,
    } | more


def latte_transformer(blocks: int = 2, frames: int = 5, seed: int = 6) -> nn.Module:
    """A video model whose self-attention looks at space and time in turns; cross-attention in the spatial blocks."""
    model = LatteTransformer3DModel(
        sample_size=8,
        num_layers=blocks,
        patch_size=2,
        attention_head_dim=12,
        num_attention_heads=2,
        caption_channels=24,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=4,
        video_length=frames,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        activation_fn="gelu-approximate",
        attention_bias=True,
    )
    return random_(model, seed)
