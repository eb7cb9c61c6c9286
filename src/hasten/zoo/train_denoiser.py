"""Stage 3 of the recipe: the denoiser, by flow matching on frozen latents and frozen text embeddings.

Most of the run is at half the side (64 pixels, 64 tokens), where captions are learned four times as cheaply; the rest
is at the native size. Positions are stretched so that a place in the picture keeps its rotary angle across sizes.
"""

from __future__ import annotations

import copy
import math
import random
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from hasten.zoo.architecture import LATENT_CHANNELS, NATIVE_SIZE, build_transformer
from hasten.zoo.scenes import COLOURS, SHAPES, Vocabulary
from hasten.zoo.train_text import MAX_TEXT_TOKENS, encode, tokenize
from hasten.zoo.train_vae import FlatVAE
from hasten.zoo.training import LossCurve, Optimizer, flat_then_linear, progress, save_checkpoint, scene_batch

ROPE_AXES = (16, 24, 24)
NATIVE_TOKENS = NATIVE_SIZE // 8  # tokens along a side of the native picture
PROBED_BLOCK = 4


@dataclass(frozen=True)
class Schedule:
    """How long and at which size the denoiser trains.

    `low_steps` at 64 pixels, then `high_steps` at 128; `low_batch` and `high_batch` are samples per worker and step.
    """

    low_steps: int = 600
    high_steps: int = 1000
    low_batch: int = 96
    high_batch: int = 32

    @property
    def total(self) -> int:
        return self.low_steps + self.high_steps


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] → [B, H·W/4, 4C]: the pipeline's 2×2 patches."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """[B, side², 4C] → [B, C, 2·side, 2·side]."""
    b, _, c = tokens.shape
    return tokens.view(b, side, side, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, 2 * side, 2 * side)


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


class TrainingDenoiser(nn.Module):
    """A QwenImageTransformer2DModel in training dress: bfloat16 blocks, everything around them in float32.

    A linear probe on a middle block names the object under each token; it turns the caption's binding of words to
    places into a loss of its own (cf. representation alignment, Yu et al. 2024, arXiv 2410.06940). It is thrown away.
    """

    def __init__(self, model: QwenImageTransformer2DModel, dtype: torch.dtype = torch.bfloat16, compiled: bool = True):
        super().__init__()
        self.model = model
        self.probe = nn.Linear(model.inner_dim, 1 + len(SHAPES) + len(COLOURS))
        self.dtype = dtype
        for block in model.transformer_blocks:
            block.attn.set_processor(PlainAttention())
            block.to(dtype)
            if compiled:
                block.compile(dynamic=False)
        self._rotary: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

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


@dataclass(frozen=True)
class Batch:
    latents: torch.Tensor  # [B, N, 4C], normalised
    text: torch.Tensor  # [B, L, width]
    mask: torch.Tensor  # bool [B, L]
    labels: torch.Tensor  # int64 [B, N], the label under each token's centre


class Data:
    """Draws scenes and turns them into what the denoiser sees. Each scene is used `uses` times, with other noise."""

    def __init__(
        self,
        tokenizer: Qwen2Tokenizer,
        encoder: Qwen2_5_VLForConditionalGeneration,
        vae: AutoencoderKLQwenImage,
        vocabulary: Vocabulary,
        seed: int,
        device: str,
        uses: int = 2,
        compiled: bool = True,
    ):
        self.tokenizer, self.encoder, self.vocabulary, self.device = tokenizer, encoder.eval(), vocabulary, device
        stats = [torch.tensor(values, device=device) for values in (vae.config.latents_mean, vae.config.latents_std)]
        self.mean, self.std = (value[:, None, None] for value in stats)
        self.flat = FlatVAE(vae)
        if compiled:
            self.flat.compile(dynamic=False)
        self.rng = random.Random(seed)
        self.uses = uses
        self._kept: list[Batch] = []

    @torch.no_grad()
    def text(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = tokenize(self.tokenizer, prompts, MAX_TEXT_TOKENS)
        return encode(self.encoder, ids.to(self.device)).float(), mask.to(self.device)

    @torch.no_grad()
    def draw(self, count: int, size: int) -> Batch:
        pixels, labels, captions, _ = scene_batch(self.rng, self.vocabulary, count, size, self.device)
        for i in range(count):
            if self.rng.random() < 0.1:  # for classifier-free guidance; " " is Qwen's empty negative prompt
                captions[i] = self.rng.choice(("", " "))
        with torch.autocast(self.device, torch.bfloat16):
            latents = self.flat(pixels)[0].float()
        text, mask = self.text(captions)
        return Batch(pack((latents - self.mean) / self.std), text, mask, labels[:, 4::8, 4::8].flatten(1))

    def next(self, count: int, size: int) -> Batch:
        """A batch that is half new and half met before (from the last 8 batches), so that drawing costs half."""
        fresh = self.draw(count // self.uses, size)
        pool = [batch for batch in self._kept if batch.latents.shape[1] == fresh.latents.shape[1]]
        self._kept = [*pool[-15:], fresh]
        parts = [fresh, *self.rng.sample(pool, min(self.uses - 1, len(pool)))]
        return Batch(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "text", "mask", "labels"))
        )

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, N, 4C] → pixels [B, 3, H, W] in −1…1."""
        latents = unpack(tokens, math.isqrt(tokens.shape[1])) * self.std + self.mean
        return self.flat.decode(latents).clamp(-1, 1)


def denoiser_loss(model: TrainingDenoiser, batch: Batch, emphasis: float) -> tuple[torch.Tensor, dict[str, float]]:
    """Flow-matching loss ‖v − (noise − x)‖², with noise levels centred where a scene of this size is decided.

    Halving the side halves the noise that hides the same thing, hence the shift of the mean by log 2. `emphasis` is
    the extra weight of tokens on objects: it speeds the start up and goes to zero at the end, where it would bias.
    """
    x, count = batch.latents, len(batch.latents)
    mean = 0.8 if x.shape[1] >= NATIVE_TOKENS**2 else 0.8 - math.log(2)
    sigma = torch.sigmoid(mean + 1.1 * torch.randn(count, device=x.device))
    noise = torch.randn_like(x)
    noisy = torch.lerp(x, noise, sigma[:, None, None])
    velocity, probe = model(noisy, sigma, batch.text, batch.mask)
    weight = 1 + emphasis * (batch.labels > 0).float()
    error = (velocity - (noise - x)).square().mean(-1)
    plain = error.mean()
    flow = (weight * error).mean() / weight.mean()
    told = batch.mask.sum(1) > 7  # captions only: an empty prompt says nothing about places
    shape = torch.where(batch.labels > 0, 1 + (batch.labels - 1).clamp(0) // len(COLOURS), 0)
    colour = torch.where(batch.labels > 0, (batch.labels - 1).clamp(0) % len(COLOURS), -100)
    shape_loss = F.cross_entropy(probe[told][..., : 1 + len(SHAPES)].flatten(0, 1), shape[told].flatten())
    colour_loss = F.cross_entropy(probe[told][..., 1 + len(SHAPES) :].flatten(0, 1), colour[told].flatten())
    with torch.no_grad():
        noisiest = told & (sigma > 0.9)
        on = batch.labels[noisiest] > 0
        guess = probe[noisiest][..., : 1 + len(SHAPES)].argmax(-1) == shape[noisiest]
        tint = probe[noisiest][..., 1 + len(SHAPES) :].argmax(-1) == colour[noisiest]
        figures = {
            "loss": plain.item(),
            "probe_shape": guess[on].float().mean().item(),
            "probe_colour": tint[on].float().mean().item(),
        }
    return flow + 0.1 * (shape_loss + colour_loss), figures


@torch.no_grad()
def sample(
    model: TrainingDenoiser,
    data: Data,
    prompts: list[str],
    size: int,
    steps: int = 25,
    guidance: float = 3.0,
    shift: float = 3.0,
    seed: int = 0,
) -> torch.Tensor:
    """Euler sampling with the pipeline's guidance, for a look during training: pixels [B, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(prompts), (size // 8) ** 2, 4 * LATENT_CHANNELS, generator=generator).to(data.device)
    (text, mask), (null, null_mask) = data.text(prompts), data.text([" "] * len(prompts))
    sigmas = torch.linspace(1, 1 / steps, steps)
    sigmas = torch.cat((shift * sigmas / (1 + (shift - 1) * sigmas), torch.zeros(1)))
    for now, after in pairwise(sigmas):
        level = now.expand(len(prompts)).to(data.device)
        told, untold = model(x, level, text, mask)[0], model(x, level, null, null_mask)[0]
        guided = untold + guidance * (told - untold)
        guided = guided * told.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)
        x = x + (after - now) * guided
    return data.decode(x)


class Trainer:
    """One worker: a bfloat16 working copy, float32 master weights and their running mean (EMA)."""

    def __init__(self, data: Data, device: str, seed: int, width: int = 192, layers: int = 8, compiled: bool = True):
        torch.manual_seed(seed)
        model = build_transformer(width, layers).to(device)
        self.worker = TrainingDenoiser(model, compiled=False).to(device)
        self.master = copy.deepcopy(self.worker).float()
        self.master.dtype = torch.float32
        self.ema = copy.deepcopy(self.master)
        for block in self.worker.model.transformer_blocks if compiled else ():
            block.compile(dynamic=False)
        self.optimizer = Optimizer(self.master.named_parameters(), muon_lr=4e-3, adam_lr=1.5e-3)
        self.data, self.device, self.step = data, device, 0
        self._sync()

    @torch.no_grad()
    def _sync(self) -> None:
        for working, master in zip(self.worker.parameters(), self.master.parameters(), strict=True):
            working.copy_(master)

    def update(self, batch: Batch, factor: float, emphasis: float) -> dict[str, float]:
        """One optimizer step; gradients are averaged over the workers."""
        loss, figures = denoiser_loss(self.worker, batch, emphasis)
        loss.backward()
        masters = list(self.master.parameters())
        # The last block's text half feeds nothing and has no gradient.
        grads = [
            torch.zeros_like(w, dtype=torch.float32) if w.grad is None else w.grad.float()
            for w in self.worker.parameters()
        ]
        self.worker.zero_grad(set_to_none=True)
        flat = torch._utils._flatten_dense_tensors(grads)
        if dist.is_initialized():
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        flat *= torch.clamp(1.0 / flat.norm(), max=1.0)
        for master, grad in zip(masters, torch._utils._unflatten_dense_tensors(flat, grads), strict=True):
            master.grad = grad
        self.optimizer.step(factor)
        self._sync()
        self.step += 1
        decay = min(0.998, self.step / (self.step + 10))
        with torch.no_grad():
            for running, master in zip(self.ema.parameters(), masters, strict=True):
                running.lerp_(master, 1 - decay)
        return figures

    def save(self, folder: Path) -> None:
        """Write weights, running mean and step (the first worker) and the optimizer's share (every worker)."""
        rank, world = _place()
        save_checkpoint(
            folder / f"denoiser-optimizer-{rank}of{world}.pt",
            {"optimizer": self.optimizer.state_dict(), "step": self.step},
        )
        if rank == 0:
            state = {"master": self.master.state_dict(), "ema": self.ema.state_dict(), "step": self.step}
            save_checkpoint(folder / "denoiser.pt", state)

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint, if there is one; with another number of workers the momentum starts anew."""
        rank, world = _place()
        if not (folder / "denoiser.pt").exists():
            return
        state = torch.load(folder / "denoiser.pt", weights_only=True, map_location=self.device)
        self.master.load_state_dict(state["master"])
        self.ema.load_state_dict(state["ema"])
        self.step = state["step"]
        share = folder / f"denoiser-optimizer-{rank}of{world}.pt"
        if share.exists():
            saved = torch.load(share, weights_only=True, map_location=self.device)
            self.optimizer.load_state_dict(saved["optimizer"])
        self._sync()


def _place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def train_denoiser(
    folder: Path,
    data: Data,
    schedule: Schedule,
    device: str = "cpu",
    seed: int = 0,
    quiet: bool = False,
    width: int = 192,
    layers: int = 8,
    compiled: bool = True,
    decay: float = 0.35,
    look: Any = None,
) -> QwenImageTransformer2DModel:
    """Train, or go on training, the denoiser; checkpoints and `denoiser.csv` are kept in `folder`.

    `look(trainer, size)` is called by the first worker now and then and returns figures for the curve (accuracy).
    """
    rank, _ = _place()
    trainer = Trainer(data, device, seed, width, layers, compiled)
    curve = LossCurve(folder / "denoiser.csv")
    trainer.load(folder)
    torch.manual_seed(seed + 1000 * rank + trainer.step)
    mean: dict[str, float] = {}
    began = time.perf_counter()
    for step, say in progress("denoiser", trainer.step, schedule.total, quiet or rank > 0):
        low = step < schedule.low_steps
        size, count = (NATIVE_SIZE // 2, schedule.low_batch) if low else (NATIVE_SIZE, schedule.high_batch)
        factor = flat_then_linear(step, schedule.total, decay=decay)
        figures = trainer.update(
            data.next(count, size), factor, emphasis=2.0 * min(1.0, 2 * factor - 0.5) if factor > 0.25 else 0.0
        )
        for name, value in figures.items():
            if value == value:
                mean[name] = value if name not in mean else 0.95 * mean[name] + 0.05 * value
        if step % 200 == 199 or step + 1 in (schedule.low_steps, schedule.total):
            trainer.save(folder)
            if look and not rank:
                look(trainer, size)
        if rank:
            continue
        say("  ".join(f"{name} {value:.3f}" for name, value in mean.items()))
        if step % 25 == 24 or step + 1 == schedule.total:
            curve.add({"step": step + 1, "size": size, "seconds": time.perf_counter() - began, **mean})
    model: QwenImageTransformer2DModel = build_transformer(width, layers)
    model.load_state_dict(trainer.ema.model.state_dict())
    return model
