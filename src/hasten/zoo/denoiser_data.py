"""What a denoiser trains on: scenes as latents, captions as embeddings."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

import torch

from hasten.zoo.family import TOKEN, Family, TrainingDenoiser, pack, unpack
from hasten.zoo.scenes import Vocabulary
from hasten.zoo.training import scene_batch


@dataclass(frozen=True)
class Batch:
    latents: torch.Tensor  # [B, N, C], normalised
    text: torch.Tensor  # [B, L, width]
    mask: torch.Tensor  # bool [B, L]
    told: torch.Tensor  # bool [B], False where the caption was dropped
    labels: torch.Tensor  # int64 [B, N], the label under each token's centre


class Data:
    """Draws scenes and turns them into what the denoiser sees. Each scene is used `uses` times, with other noise."""

    def __init__(
        self,
        family: Family,
        tokenizer: Any,
        encoder: Any,
        vae: Any,
        vocabulary: Vocabulary,
        seed: int,
        device: str,
        compiled: bool = True,
    ):
        self.family, self.vocabulary, self.device = family, vocabulary, device
        self.tokenizer, self.encoder = tokenizer, encoder.eval()
        self.mean, self.std = (value.to(device) for value in family.latent_scale(vae))
        self.flat = family.training_vae(vae)
        if compiled and family.compiles_vae:
            self.flat.compile(dynamic=False)
        self.rng = random.Random(seed)
        self._kept: list[Batch] = []

    @torch.no_grad()
    def text(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = self.family.tokenize(self.tokenizer, prompts)
        return self.family.encode(self.encoder, ids.to(self.device)).float(), mask.to(self.device)

    @torch.no_grad()
    def draw(self, count: int, size: int) -> Batch:
        pixels, labels, captions, _ = scene_batch(self.rng, self.vocabulary, count, size, self.device)
        told = torch.tensor([self.rng.random() >= 0.1 for _ in captions], device=self.device)
        # Dropped for classifier-free guidance; " " is Qwen's empty negative prompt.
        captions = [text if kept else self.rng.choice(("", " ")) for text, kept in zip(captions, told, strict=True)]
        with torch.autocast(self.device, torch.bfloat16):
            latents = self.flat(pixels)[0].float()
        tokens = pack((latents - self.mean) / self.std, self.family.patch)
        return Batch(tokens, *self.text(captions), told, labels[:, TOKEN // 2 :: TOKEN, TOKEN // 2 :: TOKEN].flatten(1))

    def next(self, count: int, size: int) -> Batch:
        """A batch of which one part is new and the rest was met before (in the last steps), as drawing costs time."""
        uses = self.family.uses
        fresh = self.draw(max(1, count // uses), size)
        pool = [batch for batch in self._kept if batch.latents.shape[1] == fresh.latents.shape[1]]
        self._kept = [*pool[-(8 * uses - 1) :], fresh]
        parts = [fresh, *self.rng.sample(pool, min(uses - 1, len(pool)))]
        return Batch(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Batch)))

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, N, C] → pixels [B, 3, H, W] in −1…1."""
        return self.flat.decode(unpack(tokens, self.family.patch) * self.std + self.mean).clamp(-1, 1)

    @torch.no_grad()
    def predicted(self, model: TrainingDenoiser, latents: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """What a denoiser makes of latents [B, z, h, w] under faint noise, in one step."""
        noised = self.family.add_noise(pack((latents - self.mean) / self.std, self.family.patch), faint=True)
        guess, _ = model(noised.noisy, noised.level, *self.text(captions))
        return unpack(noised.recover(guess), self.family.patch) * self.std + self.mean
