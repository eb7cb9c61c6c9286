"""Stage 1 of the recipe: the autoencoder, and then its decoder alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hasten.zoo.family import NATIVE_SIZE, Family, TrainingVAE
from hasten.zoo.scenes import Vocabulary
from hasten.zoo.training import FileCheckpoint, Optimizer, Run, flat_then_linear, scene_batch

# Latents [B, z, h, w] and captions → latents as a denoiser might leave them.
Disturb = Callable[[torch.Tensor, list[str]], torch.Tensor]


def vae_loss(flat: TrainingVAE, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Foreground-weighted reconstruction, a slight KL, and scale equivariance of the latents.

    The last (EQ-VAE, Kouzelis et al. 2025, arXiv 2502.09509) makes halving the latents mean halving
    the picture, which spares the denoiser the learning of oddities.
    """
    mean, log_variance = flat(pixels)
    latents = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    if random.random() < 0.25:
        latents, target = F.avg_pool2d(latents, 2), F.avg_pool2d(pixels, 2)
        weight = 1 + 4 * F.max_pool2d((labels > 0).float()[:, None], 2)
    else:
        target, weight = pixels, 1 + 4 * F.max_pool2d((labels > 0).float()[:, None], 3, 1, 1)
    error = flat(latents, decode=True) - target
    reconstruction = (weight * (error.abs() + 2 * error.square())).mean() / weight.mean()
    return reconstruction + 1e-3 * kl, error.detach().square().mean()


def train_vae(
    folder: Path,
    family: Family,
    vocabulary: Vocabulary,
    steps: int = 1400,
    batch: int = 24,
    device: str = "cpu",
    seed: int = 0,
    quiet: bool = False,
    compiled: bool = True,
) -> Any:
    """Train, or go on training, the autoencoder; checkpoints and `vae.csv` are kept in `folder`.

    It sees 64 pixels at a time for most of the run and 128 at its end: convolutions do not mind, the one attention
    layer in the middle gets used to the final size. Those 64 pixels are a whole small picture, or, where the
    autoencoder shrinks too much for that, a window of a native one.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    flat = family.training_vae(family.build_vae().to(device))
    optimizer = Optimizer(flat.named_parameters(), muon_lr=4e-3, adam_lr=2e-3)
    run = Run("vae", folder, steps, FileCheckpoint(folder / "vae.pt", flat, optimizer, device), (50, 500), quiet=quiet)
    rng = random.Random(seed + run.start)
    if compiled:  # a third faster on CPU; the first step of each size takes half a minute
        flat.compile(dynamic=False)
    for step in run:
        if step >= 0.9 * steps:
            pixels, labels, _, _ = scene_batch(rng, vocabulary, batch // 4, NATIVE_SIZE, device)
        elif family.windows:
            pixels, labels, _, _ = scene_batch(rng, vocabulary, batch, NATIVE_SIZE, device)
            pixels, labels = window(pixels, labels, NATIVE_SIZE // 2)
        else:
            pixels, labels, _, _ = scene_batch(rng, vocabulary, batch, NATIVE_SIZE // 2, device)
        with torch.autocast(device, torch.bfloat16):
            loss, error = vae_loss(flat, pixels, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(flat.parameters(), 1.0)
        optimizer.step(flat_then_linear(step, steps))
        run.note(loss=loss.item(), psnr=decibels(error))
    mean, std = latent_statistics(flat, rng, vocabulary, device)
    return family.finish_vae(flat, mean, std)


def polish_decoder(
    folder: Path,
    family: Family,
    vae: Any,
    vocabulary: Vocabulary,
    steps: int = 600,
    batch: int = 6,
    device: str = "cpu",
    seed: int = 0,
    quiet: bool = False,
    compiled: bool = True,
    title: str = "decoder",
    disturb: Disturb | None = None,
) -> Any:
    """Train the decoder alone for a while, at the native size, on latents that are not quite the encoder's.

    The latents stay what they are, so a denoiser that was trained on them is not touched. A denoiser's latents are
    never quite an encoder's; a decoder that has met such draws clean edges and faint textures from them all the same.

    Args:
        title: names checkpoint and curve.
        disturb: turns latents and captions into what the decoder meets; a little noise by default.
    """
    torch.manual_seed(seed)
    flat = family.training_vae(vae)
    optimizer = Optimizer(flat.named_parameters(), muon_lr=2e-3, adam_lr=1e-3)
    checkpoint = FileCheckpoint(folder / f"{title}.pt", flat, optimizer, device)
    run = Run(title, folder, steps, checkpoint, (50, 200), quiet=quiet)
    rng = random.Random(seed + run.start)
    disturb = disturb or _little_noise(family.latent_scale(vae)[1].to(device))
    if compiled:
        flat.compile(dynamic=False)
    for step in run:
        pixels, labels, captions, _ = scene_batch(rng, vocabulary, batch, NATIVE_SIZE, device)
        with torch.autocast(device, torch.bfloat16), torch.no_grad():
            mean, _ = flat(pixels)
        with torch.no_grad():
            latents = disturb(mean.float(), captions)
        with torch.autocast(device, torch.bfloat16):
            difference = flat(latents, decode=True) - pixels
        weight = 1 + F.max_pool2d((labels > 0).float()[:, None], 3, 1, 1)
        loss = (weight * (difference.abs() + 2 * difference.square())).mean() / weight.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(flat.parameters(), 1.0)
        optimizer.step(flat_then_linear(step, steps, decay=0.5))
        run.note(loss=loss.item(), psnr=decibels(difference.detach().square().mean()))
    return flat.write_back()


def _little_noise(std: torch.Tensor) -> Disturb:
    def disturb(latents: torch.Tensor, _: list[str]) -> torch.Tensor:
        amount = 0.2 * torch.rand(len(latents), 1, 1, 1, device=latents.device)
        return latents + amount * std * torch.randn_like(latents)

    return disturb


def window(pixels: torch.Tensor, labels: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same window of `size` pixels, at a random place, of every picture and its labels."""
    y, x = (random.randrange(pixels.shape[-1] - size + 1) for _ in range(2))
    return pixels[..., y : y + size, x : x + size].contiguous(), labels[:, y : y + size, x : x + size].contiguous()


def decibels(error: torch.Tensor) -> float:
    """PSNR of a mean squared error between pixels in −1…1."""
    return -10 * torch.log10(error / 4).item()


@torch.no_grad()
def latent_statistics(
    flat: TrainingVAE, rng: random.Random, vocabulary: Vocabulary, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every latent channel, [z] each, over 256 scenes, for the pipeline's scaling."""
    latents = torch.cat([flat.encode(scene_batch(rng, vocabulary, 32, NATIVE_SIZE, device)[0])[0] for _ in range(8)])
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))
