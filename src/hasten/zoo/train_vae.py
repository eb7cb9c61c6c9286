"""Stage 1 of the recipe: the autoencoder.

A single frame meets only the last temporal slice of the Qwen autoencoder's causal kernels, so that slice is trained
with 2-D convolutions and the rest stays zero.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from torch import nn

from hasten.zoo.architecture import NATIVE_SIZE, build_vae
from hasten.zoo.scenes import Vocabulary
from hasten.zoo.training import LossCurve, Optimizer, flat_then_linear, progress, save_checkpoint, scene_batch


class FlatVAE(nn.Module):
    """An AutoencoderKLQwenImage for single frames, its convolutions as matrices of 2-D kernels."""

    vae: AutoencoderKLQwenImage

    def __init__(self, vae: AutoencoderKLQwenImage):
        super().__init__()
        object.__setattr__(self, "vae", vae)  # not registered: its 3-D kernels are not trained
        self.kernels = nn.ParameterList()
        self.others = nn.ParameterList()
        for module in vae.modules():
            if isinstance(module, nn.Conv3d):
                kernel = nn.Parameter(module.weight.detach()[:, :, -1].flatten(1).clone())
                self.kernels.append(kernel)
                setattr(module, "forward", _flat_forward(module, kernel))  # noqa: B010 (on the instance, taken back below)
                self.others.append(module.bias)
            else:
                self.others.extend(module.parameters(recurse=False))

    def forward(self, x: torch.Tensor, decode: bool = False) -> Any:
        """`decode` or `encode`: the entry that `compile()` compiles."""
        return self.decode(x) if decode else self.encode(x)

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels [B, 3, H, W] in −1…1 → mean and log-variance of the latents, each [B, z, H/4, W/4]."""
        vae = self.vae
        moments = vae.quant_conv(vae.encoder(pixels[:, :, None]))[:, :, 0]
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents [B, z, h, w] → pixels [B, 3, 4h, 4w], not clamped."""
        vae = self.vae
        return vae.decoder(vae.post_quant_conv(latents[:, :, None]))[:, :, 0]

    @torch.no_grad()
    def write_back(self) -> AutoencoderKLQwenImage:
        """Put the trained slices into the 3-D kernels, zero the rest, and give the ordinary module back."""
        vae = self.vae
        convolutions = [module for module in vae.modules() if isinstance(module, nn.Conv3d)]
        for module, kernel in zip(convolutions, self.kernels, strict=True):
            module.weight.zero_()
            module.weight[:, :, -1] = kernel.view_as(module.weight[:, :, -1])
            del module.forward
        return vae


def _flat_forward(module: nn.Conv3d, kernel: nn.Parameter) -> Any:
    shape = module.weight.shape[:2] + module.weight.shape[3:]
    left, _, top, _, _, _ = module._padding  # type: ignore[misc]  # QwenImageCausalConv3d keeps its padding here
    padding, stride = (top, left), module.stride[1:]

    def forward(x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        return F.conv2d(x[:, :, 0], kernel.view(shape), module.bias, stride, padding)[:, :, None]

    return forward


def vae_loss(flat: FlatVAE, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
    vocabulary: Vocabulary,
    steps: int = 1400,
    batch: int = 24,
    device: str = "cpu",
    seed: int = 0,
    quiet: bool = False,
    compiled: bool = True,
) -> AutoencoderKLQwenImage:
    """Train, or go on training, the autoencoder; checkpoints and `vae.csv` are kept in `folder`.

    Pictures are 64 pixels wide for most of the run and 128 at its end: convolutions do not mind, the one attention
    layer in the middle gets used to the final size.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    flat = FlatVAE(build_vae().to(device))
    optimizer = Optimizer(flat.named_parameters(), muon_lr=4e-3, adam_lr=2e-3)
    checkpoint, start, curve = folder / "vae.pt", 0, LossCurve(folder / "vae.csv")
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        flat.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    rng = random.Random(seed + start)
    if compiled:  # a third faster on CPU; the first step of each size takes half a minute
        flat.compile(dynamic=False)
    for step, say in progress("vae", start, steps, quiet):
        large = step >= 0.9 * steps
        pixels, labels, _, _ = scene_batch(
            rng, vocabulary, batch // 4 if large else batch, 128 if large else 64, device
        )
        with torch.autocast(device, torch.bfloat16):
            loss, error = vae_loss(flat, pixels, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(flat.parameters(), 1.0)
        optimizer.step(flat_then_linear(step, steps))
        if step % 50 == 49 or step + 1 == steps:
            decibels = -10 * torch.log10(error / 4).item()  # pixels span 2
            curve.add({"step": step + 1, "loss": loss.item(), "psnr": decibels})
            say(f"loss {loss.item():.4f}  {decibels:.1f} dB")
        if step % 500 == 499 or step + 1 == steps:
            save_checkpoint(
                checkpoint, {"model": flat.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            )
    mean, std = latent_statistics(flat, rng, vocabulary, device)
    vae = flat.write_back()
    vae.register_to_config(latents_mean=mean, latents_std=std)
    return vae


def polish_decoder(
    folder: Path,
    vae: AutoencoderKLQwenImage,
    vocabulary: Vocabulary,
    steps: int = 600,
    batch: int = 6,
    device: str = "cpu",
    seed: int = 0,
    quiet: bool = False,
    compiled: bool = True,
) -> AutoencoderKLQwenImage:
    """Train the decoder alone for a while, at the native size, on latents with a little noise in them.

    The latents stay what they are, so a denoiser that was trained on them is not touched. A denoiser's latents are
    never quite an encoder's; a decoder that has met noise draws clean edges and faint textures from them all the same.
    """
    torch.manual_seed(seed)
    flat = FlatVAE(vae)
    optimizer = Optimizer(flat.named_parameters(), muon_lr=2e-3, adam_lr=1e-3)
    checkpoint, start, curve = folder / "decoder.pt", 0, LossCurve(folder / "decoder.csv")
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        flat.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    rng = random.Random(seed + start)
    std = torch.tensor(vae.config.latents_std, device=device)[:, None, None]
    if compiled:
        flat.compile(dynamic=False)
    for step, say in progress("decoder", start, steps, quiet):
        pixels, labels, _, _ = scene_batch(rng, vocabulary, batch, NATIVE_SIZE, device)
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                mean, _ = flat(pixels)
            amount = 0.2 * torch.rand(batch, 1, 1, 1, device=device)
            difference = flat(mean + amount * std * torch.randn_like(mean), decode=True) - pixels
        weight = 1 + F.max_pool2d((labels > 0).float()[:, None], 3, 1, 1)
        loss = (weight * (difference.abs() + 2 * difference.square())).mean() / weight.mean()
        loss.backward()
        nn.utils.clip_grad_norm_(flat.parameters(), 1.0)
        optimizer.step(flat_then_linear(step, steps, decay=0.5))
        if step % 50 == 49 or step + 1 == steps:
            decibels = -10 * torch.log10(difference.detach().square().mean() / 4).item()
            curve.add({"step": step + 1, "loss": loss.item(), "psnr": decibels})
            say(f"loss {loss.item():.4f}  {decibels:.1f} dB")
        if step % 200 == 199 or step + 1 == steps:
            state = {"model": flat.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            save_checkpoint(checkpoint, state)
    return flat.write_back()


@torch.no_grad()
def latent_statistics(
    flat: FlatVAE, rng: random.Random, vocabulary: Vocabulary, device: str
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every latent channel over 256 scenes, for the pipeline's normalisation."""
    latents = torch.cat([flat.encode(scene_batch(rng, vocabulary, 32, 128, device)[0])[0] for _ in range(8)])
    return latents.mean((0, 2, 3)).tolist(), latents.std((0, 2, 3)).tolist()
