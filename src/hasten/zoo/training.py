"""What the three stages of the recipe share: batches, optimizers, checkpoints, and the loss curve."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn

from hasten.zoo.scenes import Scene, Vocabulary, arrange, caption, draw, sample_scene


def scene_batch(
    rng: random.Random, vocabulary: Vocabulary, count: int, size: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, list[str], list[Scene]]:
    """Draw `count` training scenes: pixels and labels (as `draw` gives them), captions, scenes."""
    scenes = [sample_scene(rng, vocabulary) for _ in range(count)]
    pixels, labels = draw(
        [arrange(scene, rng) for scene in scenes],
        [scene.background for scene in scenes],
        size,
        device,
        [scene.texture for scene in scenes],
    )
    return pixels, labels, [caption(scene, rng) for scene in scenes], scenes


def place() -> tuple[int, int]:
    """This worker's number, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class Optimizer:
    """Muon for the matrices and AdamW for the rest, under one learning-rate factor.

    Matrices are parameters with two dimensions, and kernels of convolutions seen as such, without embeddings and
    modulations (`_mod.`), whose many rows would take half of Muon's time; Muon's updates are scaled to AdamW's RMS.
    With several workers each orthogonalises its share of the matrices and sends it to the others, as gradients are the
    same everywhere.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], muon_lr: float = 3e-3, adam_lr: float = 1.5e-3):
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        matrices = [p for n, p in named if p.ndim in (2, 4) and p[0].numel() >= 16 <= len(p) and not _by_rows(n)]
        chosen = {id(p) for p in matrices}
        rest = [p for _, p in named if id(p) not in chosen]
        rank, world = place()
        self.kernels = [(p, nn.Parameter(p.detach().flatten(1))) for p in matrices if p.ndim == 4]  # one storage
        seen_as = {id(kernel): matrix for kernel, matrix in self.kernels}
        matrices = [seen_as.get(id(p), p) for p in matrices]
        self.shares = [matrices[i::world] for i in range(world)]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
            torch.optim.Muon(self.shares[rank], lr=muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        ]
        self.base = [group["lr"] for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Take a step at `factor` times the base learning rates, then clear the gradients."""
        groups = [group for part in self.parts for group in part.param_groups]
        for group, lr in zip(groups, self.base, strict=True):
            group["lr"] = lr * factor
        for kernel, matrix in self.kernels:
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
            kernel.grad = None
        for part in self.parts:
            part.step()
        for owner, share in enumerate(self.shares if len(self.shares) > 1 else ()):
            flat = torch._utils._flatten_dense_tensors(share)
            dist.broadcast(flat, src=owner)
            for parameter, value in zip(share, torch._utils._unflatten_dense_tensors(flat, share), strict=True):
                parameter.copy_(value)
        for parameter in (p for share in self.shares for p in share):
            parameter.grad = None
        self.parts[0].zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        """State of this worker's share; see `load_state_dict`."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        for part, saved in zip(self.parts, state, strict=True):
            part.load_state_dict(saved)


def _by_rows(name: str) -> bool:
    return "embedding" in name or "embed_tokens" in name or "_mod." in name


def flat_then_linear(step: int, total: int, warmup: int = 50, decay: float = 0.35) -> float:
    """Learning-rate factor: a short warm-up, flat, and a linear fall to zero over the last `decay` of the run."""
    left = (total - step) / max(1.0, decay * total)
    return min(1.0, (step + 1) / warmup, max(left, 0.0))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that an interruption leaves the old one or the new one, never half of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


class LossCurve:
    """Appends rows of figures to a CSV file beside the checkpoints."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict[str, float | int | str]) -> None:
        fresh = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in row.items()})


def progress(title: str, start: int, total: int, quiet: bool = False) -> Iterator[tuple[int, Any]]:
    """Count from `start` to `total` behind a progress bar.

    Yields (step, say), where say(text) shows figures on the bar.
    """
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=quiet) as bar:
        task = bar.add_task(title, total=total, completed=start, figures="")
        for step in range(start, total):
            yield step, lambda text: bar.update(task, figures=text)
            bar.advance(task)


class Checkpoint(Protocol):
    """What a run goes on from."""

    def load(self) -> int:
        """Restore the last checkpoint, if there is one, and return how many steps it has behind it."""

    def save(self, step: int) -> None: ...


class FileCheckpoint:
    """A model and its optimizer in one file."""

    def __init__(self, path: Path, model: nn.Module, optimizer: Optimizer, device: str):
        self.path, self.model, self.optimizer, self.device = path, model, optimizer, device

    def load(self) -> int:
        if not self.path.exists():
            return 0
        saved = torch.load(self.path, weights_only=True, map_location=self.device)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        step: int = saved["step"]
        return step

    def save(self, step: int) -> None:
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": step}
        save_checkpoint(self.path, state)


class Run:
    """The loop of every stage: goes on from its checkpoint, counts behind a bar, writes the curve and checkpoints.

    Iterate over it for the steps; `note` in each step what the curve should say of it.

    Args:
        title: names the curve's file in `folder`.
        every: steps between rows of the curve, and between checkpoints.
        milestones: numbers of steps after which a checkpoint is due in any case, as it is at the end.
    """

    def __init__(
        self,
        title: str,
        folder: Path,
        steps: int,
        checkpoint: Checkpoint,
        every: tuple[int, int],
        milestones: tuple[int, ...] = (),
        quiet: bool = False,
        write: bool = True,
    ):
        self.title, self.steps, self.checkpoint, self.every, self.quiet = title, steps, checkpoint, every, quiet
        self.milestones, self.write = {*milestones, steps}, write
        self.curve = LossCurve(folder / f"{title}.csv")
        self.start = checkpoint.load()
        self.figures: dict[str, float | int] = {}

    def __iter__(self) -> Iterator[int]:
        note_every, _ = self.every
        for step, say in progress(self.title, self.start, self.steps, self.quiet):
            yield step
            done = step + 1
            if self.write and self.figures:
                say("  ".join(f"{name} {value:.4g}" for name, value in self.figures.items()))
                if done % note_every == 0 or done == self.steps:
                    self.curve.add({"step": done, **self.figures})
            if self.due(done):
                self.checkpoint.save(done)

    def due(self, done: int) -> bool:
        """True when a checkpoint is due after this many steps."""
        return done % self.every[1] == 0 or done in self.milestones

    def note(self, **figures: float | int) -> None:
        self.figures = figures
