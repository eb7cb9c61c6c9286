"""The denoiser of `scenes-qwen` in training: what QwenImageTransformer2DModel computes, faster on CPUs."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import QwenImageTransformer2DModel
from torch import nn

from hasten.zoo.family import NATIVE_SIZE, PROBED, Denoise, TrainingDenoiser

ROPE_AXES = (16, 24, 24)
NATIVE_TOKENS = NATIVE_SIZE // 8  # tokens along a side of the native picture
PROBED_BLOCK = 4


def rotary(side: int, text_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines for a square picture of side² tokens and for the text behind it.

    Returns image [2, side², 32] and text [2, text_tokens, 32]. At the native side they are QwenEmbedRope's.
    """
    stretch = NATIVE_TOKENS / side
    place = (torch.arange(side) - side / 2) * stretch + (stretch - 1) / 2
    rates = [1.0 / 10000 ** (torch.arange(0, dim, 2).float() / dim) for dim in ROPE_AXES]
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    angles = [torch.outer(axis.flatten(), rate) for axis, rate in zip((0 * rows, rows, columns), rates, strict=True)]
    image = torch.cat(angles, dim=-1)
    text = torch.outer(NATIVE_TOKENS // 2 + torch.arange(text_tokens), torch.cat(rates))
    return torch.stack((image.cos(), image.sin())), torch.stack((text.cos(), text.sin()))


def _rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    cos, sin = angles[:, None, :, None, :].to(x.dtype)  # [1, tokens, 1, 32]
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((real * cos - imaginary * sin, real * sin + imaginary * cos), dim=-1).flatten(-2)


class PlainAttention:
    """Qwen's joint attention with real-valued rotary angles and a plain softmax.

    On CPUs this trains twice as fast as complex rotations and the flash kernel's backward pass.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor],
        attention_mask: None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        text_tokens = encoder_hidden_states.shape[1]
        image = [linear(hidden_states).unflatten(-1, (attn.heads, -1)) for linear in (attn.to_q, attn.to_k, attn.to_v)]
        text = [
            linear(encoder_hidden_states).unflatten(-1, (attn.heads, -1))
            for linear in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        ]
        image_angles, text_angles = image_rotary_emb
        image[:2] = _rotate(attn.norm_q(image[0]), image_angles), _rotate(attn.norm_k(image[1]), image_angles)
        text[:2] = _rotate(attn.norm_added_q(text[0]), text_angles), _rotate(attn.norm_added_k(text[1]), text_angles)
        q, k, v = (torch.cat(pair, dim=1).transpose(1, 2) for pair in zip(text, image, strict=True))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + encoder_hidden_states_mask
        joint = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](joint[:, text_tokens:]), attn.to_add_out(joint[:, :text_tokens])


class TrainingQwen(TrainingDenoiser):
    """A QwenImageTransformer2DModel in training dress: bfloat16 blocks, everything around them in float32."""

    def __init__(self, model: QwenImageTransformer2DModel, dtype: torch.dtype = torch.bfloat16, compiled: bool = True):
        super().__init__()
        self.model = model
        self.probe = nn.Linear(model.inner_dim, PROBED)
        self.dtype = dtype
        for block in model.transformer_blocks:
            block.attn.set_processor(PlainAttention())
            block.to(dtype)
        if compiled:
            self.compile_blocks()
        self._rotary: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def compile_blocks(self) -> None:
        for block in self.model.transformer_blocks:
            block.compile(dynamic=False)

    def forward(
        self, noisy: torch.Tensor, sigma: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """noisy [B, N, 4C], sigma [B], text [B, L, width], mask [B, L] → velocity [B, N, 4C], probe [B, N, classes]."""
        model, side = self.model, math.isqrt(noisy.shape[1])
        if side not in self._rotary:
            angles = rotary(side, text.shape[1])
            self._rotary[side] = (angles[0].to(noisy.device), angles[1].to(noisy.device))
        temb = model.time_text_embed(sigma, noisy)
        hidden = model.img_in(noisy).to(self.dtype)
        states = model.txt_in(model.txt_norm(text)).to(self.dtype)
        bias = F.pad(torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, -1e4), (0, noisy.shape[1]))
        bias = bias[:, None, None, :]
        low = temb.to(self.dtype)
        probe = hidden
        for index, block in enumerate(model.transformer_blocks):
            states, hidden = block(
                hidden_states=hidden,
                encoder_hidden_states=states,
                encoder_hidden_states_mask=bias,
                temb=low,
                image_rotary_emb=self._rotary[side],
            )
            if index + 1 == PROBED_BLOCK:
                probe = self.probe(hidden.float())
        return model.proj_out(model.norm_out(hidden.float(), temb)), probe


def sample_flow(
    denoise: Denoise, noise: torch.Tensor, steps: int, guidance: float = 3.0, shift: float = 3.0
) -> torch.Tensor:
    """Euler sampling with QwenImagePipeline's guidance: tokens [B, N, 4C]."""
    sigmas = torch.linspace(1, 1 / steps, steps)
    sigmas = torch.cat((shift * sigmas / (1 + (shift - 1) * sigmas), torch.zeros(1)))
    x = noise
    for now, after in pairwise(sigmas):
        told, untold = denoise(x, now.expand(len(x)).to(x.device))
        guided = untold + guidance * (told - untold)
        guided = guided * told.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        x = x + (after - now) * guided
    return x
