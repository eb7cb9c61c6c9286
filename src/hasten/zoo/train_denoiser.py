"""Stage 3 of the recipe: the denoiser, on frozen latents and frozen text embeddings.

Where the family's denoiser carries over from small pictures to large ones, most of the run is at half the side (64
pixels, 64 tokens), where captions are learned four times as cheaply; the rest is at the native size.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from hasten.zoo.denoiser_data import Batch, Data
from hasten.zoo.family import NATIVE_SIZE, TOKEN, Family, TrainingDenoiser
from hasten.zoo.scenes import COLOURS, SHAPES
from hasten.zoo.training import Optimizer, Run, flat_then_linear, place, save_checkpoint

Size = tuple[int | None, int | None]  # width and layers; None: the family's own


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


def denoiser_loss(
    family: Family, model: TrainingDenoiser, batch: Batch, emphasis: float
) -> tuple[torch.Tensor, dict[str, float]]:
    """Squared error of the family's target, and the probe's cross-entropies.

    `emphasis` is the extra weight of tokens on objects: it speeds the start up and goes to zero at the end, where it
    would bias.
    """
    noised = family.add_noise(batch.latents)
    predicted, probe = model(noised.noisy, noised.level, batch.text, batch.mask)
    weight = 1 + emphasis * (batch.labels > 0).float()
    error = (predicted - noised.target).square().mean(-1)
    weighted = (weight * error).mean() / weight.mean()
    told = batch.told
    shape = torch.where(batch.labels > 0, 1 + (batch.labels - 1).clamp(0) // len(COLOURS), 0)
    colour = torch.where(batch.labels > 0, (batch.labels - 1).clamp(0) % len(COLOURS), -100)
    shapes, colours = probe[..., : 1 + len(SHAPES)], probe[..., 1 + len(SHAPES) :]
    shape_loss = F.cross_entropy(shapes[told].flatten(0, 1), shape[told].flatten())
    colour_loss = F.cross_entropy(colours[told].flatten(0, 1), colour[told].flatten())
    with torch.no_grad():
        on = (told & noised.hidden)[:, None] & (batch.labels > 0)
        figures = {
            "loss": error.mean().item(),
            "probe_shape": (shapes.argmax(-1) == shape)[on].float().mean().item(),
            "probe_colour": (colours.argmax(-1) == colour)[on].float().mean().item(),
        }
    return weighted + 0.1 * (shape_loss + colour_loss), figures


@torch.no_grad()
def sample(
    model: TrainingDenoiser, data: Data, prompts: list[str], size: int, steps: int = 25, seed: int = 0
) -> torch.Tensor:
    """Sampling with the pipeline's guidance, for a look during training: pixels [B, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    channels = data.family.patch**2 * len(data.mean)
    noise = torch.randn(len(prompts), (size // TOKEN) ** 2, channels, generator=generator).to(data.device)
    told, untold = data.text(prompts), data.text([data.family.native["negative_prompt"]] * len(prompts))

    def denoise(x: torch.Tensor, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return model(x, level, *told)[0], model(x, level, *untold)[0]

    return data.decode(data.family.sample(denoise, noise, steps))


class Trainer:
    """One worker: a bfloat16 working copy, float32 master weights and their running mean (EMA)."""

    def __init__(self, family: Family, folder: Path, device: str, seed: int, denoiser: Any, compiled: bool = True):
        torch.manual_seed(seed)
        self.folder = folder
        self.worker = family.training_denoiser(denoiser).to(device)
        self.master = copy.deepcopy(self.worker).float()
        self.master.dtype = torch.float32
        self.ema = copy.deepcopy(self.master)
        if compiled:
            self.worker.compile_blocks()
        self.optimizer = Optimizer(self.master.named_parameters(), muon_lr=4e-3, adam_lr=1.5e-3)
        self.family, self.device, self.updates = family, device, 0
        self._sync()

    @torch.no_grad()
    def _sync(self) -> None:
        for working, master in zip(self.worker.parameters(), self.master.parameters(), strict=True):
            working.copy_(master)

    def loss(self, batch: Batch, emphasis: float) -> tuple[torch.Tensor, dict[str, float]]:
        """What is to become small, and figures of it."""
        return denoiser_loss(self.family, self.worker, batch, emphasis)

    def update(self, batch: Batch, factor: float, emphasis: float) -> dict[str, float]:
        """One optimizer step; gradients are averaged over the workers."""
        loss, figures = self.loss(batch, emphasis)
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
        self.updates += 1
        decay = min(0.998, self.updates / (self.updates + 10))
        with torch.no_grad():
            for running, master in zip(self.ema.parameters(), masters, strict=True):
                running.lerp_(master, 1 - decay)
        return figures

    def save(self, step: int) -> None:
        """Write weights, running mean and step (the first worker) and the optimizer's share (every worker)."""
        rank, _ = place()
        save_checkpoint(self._share(), {"optimizer": self.optimizer.state_dict(), "step": step})
        if rank == 0:
            state = {"master": self.master.state_dict(), "ema": self.ema.state_dict(), "step": step}
            save_checkpoint(self.folder / "denoiser.pt", state)

    def load(self) -> int:
        """Go on from a checkpoint, if there is one; with another number of workers the momentum starts anew."""
        if not (self.folder / "denoiser.pt").exists():
            return 0
        state = torch.load(self.folder / "denoiser.pt", weights_only=True, map_location=self.device)
        self.master.load_state_dict(state["master"])
        self.ema.load_state_dict(state["ema"])
        self.updates = int(state["step"])
        if self._share().exists():
            saved = torch.load(self._share(), weights_only=True, map_location=self.device)
            self.optimizer.load_state_dict(saved["optimizer"])
        self._sync()
        return self.updates

    def _share(self) -> Path:
        rank, world = place()
        return self.folder / f"denoiser-optimizer-{rank}of{world}.pt"


def train_denoiser(
    folder: Path,
    data: Data,
    schedule: Schedule,
    size: Size = (None, None),
    seed: int = 0,
    quiet: bool = False,
    compiled: bool = True,
    decay: float = 0.35,
    look: Callable[[Trainer, int, int], None] | None = None,
) -> Any:
    """Train, or go on training, the denoiser; checkpoints and `denoiser.csv` are kept in `folder`.

    `look(trainer, step, side)` is called by the first worker at every checkpoint.
    """
    rank, _ = place()
    torch.manual_seed(seed)
    trainer = Trainer(data.family, folder, data.device, seed, data.family.build_denoiser(*size), compiled)
    milestones = (schedule.low_steps,)
    run = Run("denoiser", folder, schedule.total, trainer, (25, 200), milestones, quiet or rank > 0, write=not rank)
    torch.manual_seed(seed + 1000 * rank + run.start)
    mean: dict[str, float] = {}
    began = time.perf_counter()
    for step in run:
        low = step < schedule.low_steps
        side, count = (NATIVE_SIZE // 2, schedule.low_batch) if low else (NATIVE_SIZE, schedule.high_batch)
        factor = flat_then_linear(step, schedule.total, decay=decay)
        emphasis = 2.0 * min(1.0, 2 * factor - 0.5) if factor > 0.25 else 0.0
        for name, value in trainer.update(data.next(count, side), factor, emphasis).items():
            if value == value:
                mean[name] = value if name not in mean else 0.95 * mean[name] + 0.05 * value
        run.note(size=side, seconds=time.perf_counter() - began, **mean)
        if look and not rank and run.due(step + 1):
            look(trainer, step + 1, side)
    model = data.family.build_denoiser(*size)
    model.load_state_dict(trainer.ema.model.state_dict())
    return model
