"""Token merging (ToMe): tokens of an image that are alike are averaged, and what becomes of them is copied back.

Bolya and Hoffman, Token Merging for Fast Stable Diffusion, 2023, arXiv 2303.17604. Of each cell of the grid of tokens,
one is a destination; of all others, those that are most like some destination are merged into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    """Which tokens may be merged into which: positions in a sequence, shapes (S,) and (D,)."""

    sources: Tensor
    destinations: Tensor


def split(grid: tuple[int, int, int], stride: tuple[int, int], generator: torch.Generator | None = None) -> Split:
    """One destination in every whole cell; tokens at a margin that is no whole cell are sources.

    Args:
        grid: frames, rows and columns, in the order in which the tokens lie. One row is cut into cells of as many
            tokens as there are in a square.
        stride: rows and columns of a cell.
        generator: on the CPU, draws the place in each cell; None takes the first.
    """
    frames, rows, columns = grid
    high, wide = stride if rows > 1 else (1, stride[0] * stride[1])
    cells = (frames, rows // high, columns // wide)
    picks = torch.zeros(cells, dtype=torch.long)
    if generator is not None:
        picks = torch.randint(high * wide, cells, generator=generator)
    frame, row, column = torch.meshgrid(*map(torch.arange, cells), indexing="ij")
    row, column = row * high + picks // wide, column * wide + picks % wide
    destinations = ((frame * rows + row) * columns + column).flatten()
    stays = torch.ones(frames * rows * columns, dtype=torch.bool)
    stays[destinations] = False
    return Split(stays.nonzero().flatten(), destinations)


@dataclass(frozen=True)
class Matching:
    """Which of N tokens were merged into which; N − r are left of each sample.

    Attributes:
        kept: shape (B, N − r), the positions of the tokens that are left: unmerged sources, then destinations.
        merged: shape (B, r), the positions of those that are not.
        slots: shape (B, r), where among those that are left each of these went.
        into: shape (B, N), for each token where among those that are left it is to be found.
    """

    kept: Tensor
    merged: Tensor
    slots: Tensor
    into: Tensor

    def merge(self, x: Tensor) -> Tensor:
        """Tokens, shape (B, N, C), to those that are left, each the mean of all that went into it."""
        channels = x.shape[-1]
        left = x.gather(1, _wide(self.kept, channels))
        gone = x.gather(1, _wide(self.merged, channels))
        return left.scatter_reduce(1, _wide(self.slots, channels), gone, "mean", include_self=True)

    def unmerge(self, x: Tensor) -> Tensor:
        """Tokens that are left, shape (B, N − r, C), to all N of them, merged ones as copies."""
        return x.gather(1, _wide(self.into, x.shape[-1]))


def match(x: Tensor, parts: Split, count: int, *, shared: bool = False) -> Matching:
    """Find the sources that are most like a destination, by the cosine of the angle between them.

    Args:
        x: shape (B, N, C).
        count: so many are merged; at most all sources.
        shared: one matching for all samples, by the mean of their similarities.
    """
    batch, tokens, _ = x.shape
    unit = torch.nn.functional.normalize(x, dim=-1)
    scores = unit[:, parts.sources] @ unit[:, parts.destinations].transpose(1, 2)  # (B, S, D)
    if shared:
        scores = scores.mean(0, keepdim=True).expand_as(scores)
    best, nearest = scores.max(-1)
    # Stable, so that equal tokens are merged in their order wherever this is computed.
    order = best.argsort(dim=-1, descending=True, stable=True)
    gone, stay = order[:, :count], order[:, count:]
    kept = torch.cat([parts.sources[stay], parts.destinations.expand(batch, -1)], 1)
    merged = parts.sources[gone]
    slots = nearest.gather(1, gone) + stay.shape[1]
    into = torch.empty(batch, tokens, dtype=torch.long, device=x.device)
    into = into.scatter(1, kept, torch.arange(kept.shape[1], device=x.device).expand(batch, -1))
    return Matching(kept, merged, slots, into.scatter(1, merged, slots))


def _wide(index: Tensor, channels: int) -> Tensor:
    return index[..., None].expand(-1, -1, channels)
