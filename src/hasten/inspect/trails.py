"""Trails: where a tensor comes from, written on the tensor while a forward pass is watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_TRAIL = "_hasten_trail"
_ATEN = torch.ops.aten

# Operations that carry a tensor on as it is.
_COPIES = {_ATEN.clone, _ATEN._to_copy, _ATEN.contiguous, _ATEN.alias, _ATEN.detach, _ATEN._unsafe_view, _ATEN.copy}
PROJECTING = {_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm, _ATEN.convolution, _ATEN.embedding, _ATEN._grouped_mm}
SCORING = {_ATEN.bmm, _ATEN.baddbmm}
_SOFTMAX = {_ATEN._softmax, _ATEN._safe_softmax}

Segment = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Scores:
    """The product of queries and keys, on its way through a softmax to the values.

    Attributes:
        q, k: trails of both.
        shape: batch × heads, queries, keys, head dimension.
        soft: whether the softmax was seen.
    """

    q: Trail
    k: Trail
    shape: tuple[int, int, int, int]
    soft: bool = False


@dataclass(frozen=True, slots=True)
class Trail:
    """What is known of a tensor's past.

    Attributes:
        segments: from which of the model's inputs its tokens come, in order, with how many tokens of each.
        projections: paths of the layers with weights whose results it is made of, the last ones before it.
        ancestors: a bit for each module call that it depends on.
        producer: number of the module call that returned it first.
        parameter: path of the parameter that it is a view of.
        scores: where it is attention's product of queries and keys.
    """

    segments: tuple[Segment, ...] = ()
    projections: frozenset[str] = frozenset()
    ancestors: int = 0
    producer: int | None = None
    parameter: str | None = None
    scores: Scores | None = None

    @property
    def streams(self) -> tuple[str, ...]:
        """The names of the inputs that its tokens come from, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.segments))


NOTHING = Trail()


def trail_of(tensor: Any) -> Trail:
    found: Trail = getattr(tensor, _TRAIL, NOTHING)
    return found


def mark(tensor: Tensor, trail: Trail) -> None:
    """Write a trail on a tensor."""
    setattr(tensor, _TRAIL, trail)


def follow(func: Any, args: Sequence[Any], given: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    """Write on an operation's results what its inputs' trails make of them."""
    base = func.overloadpacket
    trails = [trail_of(tensor) for tensor in given]
    weights = [trail.parameter for trail in trails if trail.parameter is not None]
    is_view = func.is_view or base in _COPIES
    if is_view and given:
        for result in results:
            mark(result, replace(trails[0], segments=_viewed(trails[0].segments, given[0], result)))
        return
    ancestors = 0
    for trail in trails:
        ancestors |= trail.ancestors
    if weights and base in PROJECTING:
        projections = frozenset(path.rpartition(".")[0] for path in weights[-1:])
    else:
        projections = frozenset().union(*(trail.projections for trail in trails))
    segments = _joined(args) if base is _ATEN.cat else _leading(given, trails)
    scores = None if weights else _scores(base, given, trails)
    for result in results:
        if all(result is not tensor for tensor in given):
            mark(result, Trail(segments, projections, ancestors, scores=scores))
        else:  # written in place
            mark(result, replace(trail_of(result), projections=projections, ancestors=ancestors, producer=None))


def _leading(given: Sequence[Tensor], trails: Sequence[Trail]) -> tuple[Segment, ...]:
    """The streams of the largest input; modulations, positions and other small ones add to it, they do not lead."""
    largest = 0
    segments: tuple[Segment, ...] = ()
    for tensor, trail in zip(given, trails, strict=True):
        if trail.segments and tensor.numel() > largest:
            largest, segments = tensor.numel(), trail.segments
    return segments


def _joined(args: Sequence[Any]) -> tuple[Segment, ...]:
    parts = args[0]
    trails = [trail_of(part) for part in parts]  # also of those that are no meta tensors, such as a table made before
    dim = args[1] if len(args) > 1 else 0
    if len({part.ndim for part in parts}) > 1:  # an empty list of torch's early days counts as any shape
        return _leading(parts, trails)
    names = [trail.streams for trail in trails]
    leading = _leading(parts, trails)
    # Before anything is projected, only channels are put together: latents and a mask, or a picture to start from.
    projected = any(trail.projections for trail in trails)
    if (len(set(names)) == 1 and len(names[0]) <= 1) or not projected or dim in (-1, parts[0].ndim - 1):
        return leading
    segments: list[Segment] = []
    for part, trail in zip(parts, trails, strict=True):
        length = part.shape[dim]
        if sum(size for _, size in trail.segments) == length:
            segments += trail.segments
        else:
            segments.append((trail.segments[0][0] if trail.segments else "?", length))
    return tuple(segments)


def _viewed(segments: tuple[Segment, ...], before: Tensor, after: Tensor) -> tuple[Segment, ...]:
    """The segments that a slice along the tokens leaves; all of them for any other view."""
    if len(segments) < 2 or before.ndim != after.ndim:
        return segments
    tokens = sum(size for _, size in segments)
    cut = [dim for dim in range(before.ndim) if before.shape[dim] != after.shape[dim]]
    if len(cut) != 1 or before.shape[cut[0]] != tokens or not before.stride(cut[0]):
        return segments
    start = (after.storage_offset() - before.storage_offset()) // before.stride(cut[0])
    end, at, left = start + after.shape[cut[0]], 0, []
    for name, size in segments:
        inside = min(end, at + size) - max(start, at)
        if inside > 0:
            left.append((name, inside))
        at += size
    return tuple(left)


def _scores(base: Any, given: Sequence[Tensor], trails: Sequence[Trail]) -> Scores | None:
    """Queries times keys, from their product to the softmax."""
    if base in SCORING:
        q, k = given[-2:]
        if q.ndim == 3 and trails[-2].projections and trails[-1].projections and trails[-2].scores is None:
            return Scores(trails[-2], trails[-1], (q.shape[0], q.shape[1], k.shape[2], q.shape[2]))
        return None
    found = next((trail.scores for trail in trails if trail.scores is not None), None)
    if found is not None and base in _SOFTMAX:
        return replace(found, soft=True)
    return found
