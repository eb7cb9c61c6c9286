"""The denoiser of `scenes-sd` in training: a UNet2DConditionModel and its noise."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from hasten.zoo.family import PROBED, Denoise, Noised, TrainingDenoiser, pack, unpack


class TrainingUNet(TrainingDenoiser):
    """A UNet2DConditionModel in training dress: bfloat16 blocks, everything around them in float32.

    The probe looks at what the first up block hands on, which is half as wide as the latents: each of its cells
    answers for four tokens. Blocks are not compiled: on CPUs convolutions take most of the time, and compiling
    the whole took six minutes to gain 5 %.
    """

    def __init__(self, model: UNet2DConditionModel, dtype: torch.dtype = torch.bfloat16):
        super().__init__()
        self.model = model
        self.probe = nn.Linear(model.config.block_out_channels[-1], 4 * PROBED)
        self.dtype = dtype
        model.set_attn_processor(
            AttnProcessor()
        )  # matmul, softmax, matmul: the fused kernel's backward is slow on CPUs
        for part in (model.down_blocks, model.mid_block, model.up_blocks):
            part.to(dtype)

    def forward(
        self, noisy: torch.Tensor, level: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """noisy [B, N, C], timestep [B], text [B, L, width] → v [B, N, C], probe [B, N, PROBED]. No mask is used."""
        model = self.model
        temb = model.time_embedding(model.time_proj(level)).to(self.dtype)
        states = text.to(self.dtype)
        hidden = model.conv_in(unpack(noisy, 1)).to(self.dtype)
        skips = (hidden,)
        for block in model.down_blocks:
            hidden, more = block(hidden, temb, **_told(block, states))
            skips += more
        hidden = model.mid_block(hidden, temb, encoder_hidden_states=states)
        probe = hidden
        for index, block in enumerate(model.up_blocks):
            count = len(block.resnets)
            skips, used = skips[:-count], skips[-count:]
            hidden = block(hidden, used, temb, **_told(block, states))
            if index == 0:
                answers = self.probe(hidden.float().permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
                probe = pack(F.pixel_shuffle(answers, 2), 1)
        out = model.conv_out(model.conv_act(model.conv_norm_out(hidden.float())))
        return pack(out, 1), probe


def _told(block: nn.Module, states: torch.Tensor) -> dict[str, Any]:
    return {"encoder_hidden_states": states} if getattr(block, "has_cross_attention", False) else {}


def add_noise(scheduler: DDIMScheduler, x: torch.Tensor, between: tuple[int, int]) -> Noised:
    """Variance-preserving noise at a uniformly drawn timestep; the target is v = √ᾱ·noise − √(1−ᾱ)·x."""
    level = torch.randint(*between, (len(x),), device=x.device)
    power = scheduler.alphas_cumprod.to(x.device)[level, None, None]
    signal, spread = power.sqrt(), (1 - power).sqrt()
    noise = torch.randn_like(x)
    hidden = (spread > 9 * signal)[:, 0, 0]
    return Noised(signal * x + spread * noise, level, signal * noise - spread * x, hidden, signal, spread)


def sample_ddim(
    scheduler: DDIMScheduler, denoise: Denoise, noise: torch.Tensor, steps: int, guidance: float
) -> torch.Tensor:
    """Deterministic DDIM with StableDiffusionPipeline's guidance: latents as tokens [B, N, C]."""
    scheduler.set_timesteps(steps)
    x = noise
    for time in scheduler.timesteps:
        told, untold = denoise(x, time.expand(len(x)).to(x.device))
        x = scheduler.step(untold + guidance * (told - untold), time, x).prev_sample
    return x
