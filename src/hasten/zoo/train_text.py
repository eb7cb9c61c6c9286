"""Stage 2 of the recipe: the text encoder, taught what a caption says before any picture is drawn.

A throw-away head asks the encoder's hidden states for the object in every cell of a coarse grid. The denoiser then
meets embeddings that already name shape, colour, size and place, which is most of what it would have had to learn.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hasten.zoo.family import TEXT_WIDTH, Family
from hasten.zoo.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Vocabulary, arrange, caption, sample_scene
from hasten.zoo.training import FileCheckpoint, Optimizer, Run, flat_then_linear

GRID = 8


class LayoutHead(nn.Module):
    """Asks, for each cell of a grid, which object lies there: shape, colour and size, and the background's colour."""

    def __init__(self, width: int = TEXT_WIDTH):
        super().__init__()
        self.query = nn.Parameter(torch.randn(GRID * GRID, width))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 2 * width)
        self.answer = nn.Linear(2 * width, 1 + len(SHAPES) + len(COLOURS) + len(SIZES) + len(BACKGROUNDS))

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query = self.query.expand(len(states), -1, -1)
        found, _ = self.attention(query, states, states, key_padding_mask=~mask, need_weights=False)
        answer = self.answer(F.gelu(self.hidden(self.norm(query + found))))
        return answer.split((1 + len(SHAPES), len(COLOURS), len(SIZES), len(BACKGROUNDS)), dim=-1)


def layout_targets(scenes: list[Scene]) -> tuple[torch.Tensor, ...]:
    """Targets of LayoutHead, int64 [batch, GRID²]: shape (0: nothing), colour and size (−100: nothing), background."""
    cells = (torch.arange(GRID) + 0.5) / GRID
    y, x = (axis.flatten() for axis in torch.meshgrid(cells, cells, indexing="ij"))
    shapes, colours, sizes, backgrounds = [], [], [], []
    for scene in scenes:
        shape, colour, size = (
            torch.zeros(GRID * GRID, dtype=torch.long),
            *(torch.full((GRID * GRID,), -100) for _ in range(2)),
        )
        for thing, placed in zip(scene.things, arrange(scene), strict=True):
            near = torch.hypot(x - placed.x, y - placed.y) < max(placed.radius, 0.12)
            shape[near] = 1 + SHAPES.index(thing.shape)
            colour[near] = tuple(COLOURS).index(thing.colour)
            size[near] = tuple(SIZES).index(thing.size)
        shapes.append(shape)
        colours.append(colour)
        sizes.append(size)
        backgrounds.append(torch.full((GRID * GRID,), tuple(BACKGROUNDS).index(scene.background)))
    return tuple(torch.stack(rows) for rows in (shapes, colours, sizes, backgrounds))


def train_text(
    folder: Path,
    family: Family,
    tokenizer: Any,
    vocabulary: Vocabulary,
    steps: int = 1500,
    batch: int = 96,
    device: str = "cpu",
    seed: int = 0,
    quiet: bool = False,
) -> Any:
    """Train, or go on training, the text encoder; checkpoints and `text.csv` are kept in `folder`."""
    torch.manual_seed(seed)
    encoder = family.build_text_encoder(tokenizer).to(device)
    head = LayoutHead().to(device)
    parts = nn.ModuleDict({"language": family.language(encoder), "head": head})
    optimizer = Optimizer(parts.named_parameters(), muon_lr=3e-3, adam_lr=2e-3)
    checkpoint = FileCheckpoint(folder / "text.pt", parts, optimizer, device)
    run = Run("text", folder, steps, checkpoint, (25, 250), quiet=quiet)
    rng = random.Random(seed + run.start)
    for step in run:
        # A cell that two-object captions without a relation leave open cannot be known: such scenes are left out here.
        scenes = [sample_scene(rng, vocabulary) for _ in range(batch)]
        scenes = [scene for scene in scenes if len(scene.things) != 2 or scene.relation]
        ids, mask = family.tokenize(tokenizer, [caption(scene, rng) for scene in scenes])
        answers = head(family.encode(encoder, ids.to(device)).float(), mask.to(device))
        targets = [target.to(device) for target in layout_targets(scenes)]
        losses = [F.cross_entropy(a.flatten(0, 1), t.flatten()) for a, t in zip(answers, targets, strict=True)]
        loss = torch.stack(losses).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step(flat_then_linear(step, steps))
        occupied = targets[0] > 0
        right = (answers[0].argmax(-1) == targets[0]) & (answers[1].argmax(-1) == targets[1])
        run.note(loss=loss.item(), accuracy=right[occupied].float().mean().item())
    return encoder
