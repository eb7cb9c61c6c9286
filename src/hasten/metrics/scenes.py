"""Reads from the pixels of a scene which shapes of which colours stand where, and scores a prompt with it.

No network is involved: objects are what differs from the border's colour, a shape is the drawn outline that overlaps
best, a relation is a comparison of centres. On drawn scenes it is right on 99 % and more (`hasten zoo check`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import TYPE_CHECKING, cast

from hasten.zoo.scenes import BACKGROUNDS, COLOURS, DIRECTION, SHAPES, Placed, Relation, Scene, Thing, arrange, coverage

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

MIN_OVERLAP = 0.72  # intersection over union with the best outline, below which a blob has no shape
MIN_SIDE = 0.07  # of the picture: smaller specks are not objects


@dataclass(frozen=True)
class Found:
    """An object read from a picture: its names, centre and size as shares of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    side: float
    overlap: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows."""

    objects: tuple[Found, ...]
    background: str


@dataclass(frozen=True)
class Score:
    """How much of a prompt a picture shows.

    objects, colours, shapes: shares of the prompt's things found (colour and shape together; colour; shape).
    relations: share of the stated relations that hold, None when none is stated or the things are not there.
    extra: objects that the prompt does not name. right: everything, the background included, and nothing else.
    """

    objects: float
    colours: float
    shapes: float
    relations: float | None
    background: bool
    extra: int
    right: bool


def read(image: Image | torch.Tensor) -> Reading:
    """Read a picture: a PIL image, or pixels [3, H, W] in 0…1 (float) or 0…255 (uint8).

    Raises ValueError for anything else, naming what came.
    """
    import torch

    pixels = _to_pixels(image)
    size = pixels.shape[-1]
    border = torch.cat(
        (
            pixels[:, :3].flatten(1),
            pixels[:, -3:].flatten(1),
            pixels[:, :, :3].flatten(1),
            pixels[:, :, -3:].flatten(1),
        ),
        1,
    )
    backdrop = border.median(dim=1).values
    background = _nearest(backdrop, BACKGROUNDS)
    mask = (pixels - backdrop[:, None, None]).abs().amax(0) > 0.24
    objects = []
    for blob in _components(mask):
        rows, columns = blob.any(1).nonzero().flatten(), blob.any(0).nonzero().flatten()
        top, bottom, left, right = rows[0].item(), rows[-1].item() + 1, columns[0].item(), columns[-1].item() + 1
        if max(bottom - top, right - left) < MIN_SIDE * size:
            continue
        shape, overlap = _outline(blob[top:bottom, left:right])
        core = _erode(blob) if _erode(blob).sum() >= 8 else blob
        colour = _nearest(pixels[:, core].median(dim=1).values, COLOURS)
        objects.append(
            Found(
                shape,
                colour,
                (left + right) / 2 / size,
                (top + bottom) / 2 / size,
                max(bottom - top, right - left) / size,
                overlap,
            )
        )
    return Reading(tuple(objects), background)


def score(prompt: str | Scene, image: Image | torch.Tensor | Reading) -> Score:
    """Score a picture against a caption or a scene; see `Score` and `read`.

    Raises ValueError when a caption names no coloured shape.
    """
    scene = parse(prompt) if isinstance(prompt, str) else prompt
    reading = image if isinstance(image, Reading) else read(image)
    wanted = scene.things
    best = match(scene, [thing for thing in reading.objects if thing.overlap >= MIN_OVERLAP])
    colours = [other is not None and other.colour == thing.colour for thing, other in zip(wanted, best, strict=True)]
    shapes = [other is not None and other.shape == thing.shape for thing, other in zip(wanted, best, strict=True)]
    both = [a and b for a, b in zip(colours, shapes, strict=True)]
    stated = scene.relations()
    holds = [
        _holds(cast("Found", best[a]), relation, cast("Found", best[b]))
        for a, relation, b in stated
        if both[a] and both[b]
    ]
    relations = sum(holds) / len(stated) if stated and holds else None
    extra = max(0, len(reading.objects) - len(wanted))
    background = reading.background == scene.background
    return Score(
        objects=sum(both) / len(wanted),
        colours=sum(colours) / len(wanted),
        shapes=sum(shapes) / len(wanted),
        relations=relations,
        background=background,
        extra=extra,
        right=all(both) and len(holds) == len(stated) and all(holds) and background and extra == 0,
    )


def match(scene: Scene, found: Sequence[Found]) -> list[Found | None]:
    """For each thing of a scene the object that is most like it, by colour and shape first, then by place."""
    slots: list[Found | None] = [*sorted(found, key=lambda one: -one.side)[:8], *[None] * len(scene.things)]
    places = arrange(scene)

    def likeness(chosen: Iterable[Found | None]) -> float:
        return sum(map(_likeness, scene.things, places, chosen))

    return list(max(permutations(slots, len(scene.things)), key=likeness))


def parse(prompt: str) -> Scene:
    """Read a caption back into its scene. Words it does not know are passed over.

    Raises ValueError when no "colour shape" pair is named.
    """
    text = re.sub(r"\bbig\b", "large", prompt.lower())
    noun = rf"(?:(small|large)\s+)?({'|'.join(COLOURS)})\s+({'|'.join(SHAPES)})s?"
    matches = list(re.finditer(noun, text))
    if not matches:
        raise ValueError(
            f"no coloured shape in {prompt!r}: colours are {', '.join(COLOURS)}; shapes are {', '.join(SHAPES)}"
        )
    things = tuple(
        Thing(shape, colour, size or "") for size, colour, shape in (match.groups() for match in matches[:3])
    )
    relation = third = None
    if len(things) > 1:
        relation = _relation(text[matches[0].end() : matches[1].start()])
    if len(things) > 2:
        between, after = text[matches[1].end() : matches[2].start()], text[matches[2].end() :]
        third = _relation(between)
        if third is None:  # "…, with C below": C's place relative to the pair, so the pair's is the opposite
            opposite: dict[str, Relation] = {"below": "above", "above": "below", "right": "left of", "left": "right of"}
            named = re.match(r"\s*(?:on the |to the )?(below|above|left|right)\b", after)
            third = opposite[named.group(1)] if named else None
    named = re.search(rf"on an? (?:(striped|dotted|plain) )?({'|'.join(BACKGROUNDS)}) background", text)
    texture, background = (named.group(1) or "plain", named.group(2)) if named else ("plain", "white")
    return Scene(things, relation, third, background, texture)


def _relation(words: str) -> Relation | None:
    found = re.search(r"left of|right of|above|below|over|under", words)
    names = {"over": "above", "under": "below"}
    return cast("Relation", names.get(found.group(), found.group())) if found else None


def _holds(first: Found, relation: Relation, second: Found) -> bool:
    dx, dy = DIRECTION[relation]
    along = (first.x - second.x) * dx + (first.y - second.y) * dy
    across = abs((first.x - second.x) * dy) + abs((first.y - second.y) * dx)
    return along > 0.1 and across < 2.2 * along


def _likeness(thing: Thing, place: Placed, other: Found | None) -> float:
    if other is None:
        return 0.0
    colour, shape = other.colour == thing.colour, other.shape == thing.shape
    away = math.hypot(other.x - place.x, other.y - place.y)
    return 2.0 * (colour and shape) + 1.0 * colour + 0.9 * shape + 0.1 * (1.5 - away)


def _to_pixels(image: Image | torch.Tensor) -> torch.Tensor:
    import numpy as np
    import torch
    from PIL import Image as Images

    if isinstance(image, Images.Image):
        return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)
    if not isinstance(image, torch.Tensor) or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"a picture is a PIL image or a tensor [3, H, W], not {getattr(image, 'shape', type(image).__name__)}"
        )
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


def _nearest(colour: torch.Tensor, palette: dict[str, tuple[int, int, int]]) -> str:
    import torch

    distances = (torch.tensor(list(palette.values())) / 255 - colour).square().sum(1)
    return list(palette)[int(distances.argmin())]


def _components(mask: torch.Tensor) -> list[torch.Tensor]:
    """Split a mask [H, W] into its connected parts (diagonals count), by joining the runs of neighbouring rows."""
    import torch

    parts: list[list[tuple[int, int, int]]] = []  # of (row, first column, column after the last)
    above: list[tuple[tuple[int, int, int], int]] = []  # the runs of the row above, with their part's number
    for y, row in enumerate(mask.tolist()):
        edges = [x for x in range(len(row) + 1) if (x < len(row) and row[x]) != (x > 0 and row[x - 1])]
        current: list[tuple[tuple[int, int, int], int]] = []
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            touched = sorted({number for (_, left, right), number in above if left <= stop and start <= right})
            if not touched:
                touched = [len(parts)]
                parts.append([])
            first, *others = touched
            for other in others:
                parts[first] += parts[other]
                parts[other] = []
            above = [(run, first if number in others else number) for run, number in above]
            current = [(run, first if number in others else number) for run, number in current]
            parts[first].append((y, start, stop))
            current.append(((y, start, stop), first))
        above = current
    masks = []
    for runs in filter(None, parts):
        part = torch.zeros_like(mask)
        for y, start, stop in runs:
            part[y, start:stop] = True
        masks.append(part)
    return masks


def _erode(mask: torch.Tensor) -> torch.Tensor:
    import torch.nn.functional as F

    return F.max_pool2d((~mask)[None, None].float(), 5, 1, 2)[0, 0] == 0


@cache
def _outlines(size: int = 48) -> torch.Tensor:
    """Every shape, cropped to its bounding box and stretched to size²: bool [len(SHAPES), size, size]."""
    import torch
    import torch.nn.functional as F

    rows = []
    for shape in SHAPES:
        mask = coverage(shape, 0.5, 0.5, 0.45, 4 * size) > 0.5
        ys, xs = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        box = mask[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1].float()
        rows.append(F.interpolate(box[None, None], (size, size), mode="area")[0, 0] > 0.5)
    return torch.stack(rows)


def _outline(box: torch.Tensor) -> tuple[str, float]:
    """The shape whose outline overlaps best with a blob cropped to its bounding box, and the overlap (IoU)."""
    import torch.nn.functional as F

    height, width = box.shape
    if not 0.55 < width / height < 1.8:
        return SHAPES[0], 0.0
    outlines = _outlines()
    stretched = F.interpolate(box[None, None].float(), outlines.shape[1:], mode="bilinear", antialias=True)[0, 0] > 0.5
    overlap = (outlines & stretched).flatten(1).sum(1) / (outlines | stretched).flatten(1).sum(1)
    return SHAPES[int(overlap.argmax())], float(overlap.max())
