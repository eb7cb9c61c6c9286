"""Captioned scenes of coloured shapes: what they hold, how they are captioned and how they are drawn.

A scene is a background and one to three shapes that stand in a known relation, so that a caption says everything
that a picture of it must show, and `hasten.metrics.scenes` can read from the pixels whether it does.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Relation = Literal["left of", "right of", "above", "below"]
OPPOSITE: dict[Relation, Relation] = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
}
# Unit vector from the second object to the first; y grows downwards, as in a picture.
DIRECTION: dict[Relation, tuple[float, float]] = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "above": (0, -1),
    "below": (0, 1),
}

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (245, 210, 30),
    "purple": (140, 40, 170),
    "cyan": (40, 200, 220),
    "orange": (250, 130, 20),
    "pink": (250, 130, 180),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (250, 250, 250),
    "gray": (128, 128, 128),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star", "diamond")
SIZES: dict[str, float] = {"small": 0.11, "": 0.15, "large": 0.19}  # circumradius as a share of the picture


@dataclass(frozen=True)
class Vocabulary:
    """What a model is taught: the words that its captions may use."""

    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    backgrounds: tuple[str, ...]
    textures: bool
    white: float = 4.0  # how much likelier the first background is drawn than each of the others


VOCABULARIES = {
    "small": Vocabulary(SHAPES[:5], tuple(COLOURS)[:6], tuple(BACKGROUNDS), textures=False),
    "full": Vocabulary(SHAPES, tuple(COLOURS), tuple(BACKGROUNDS), textures=True),
}


@dataclass(frozen=True)
class Thing:
    """One object: a shape of a colour, of a named size ("" is the middle one)."""

    shape: str
    colour: str
    size: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in (self.size, self.colour, self.shape) if word)


@dataclass(frozen=True)
class Scene:
    """What a caption says.

    `relation` is the first thing's place relative to the second; `third_relation` is the place of that pair relative
    to the third thing (in a scene of three). A scene of two without a relation stands side by side in either order.
    """

    things: tuple[Thing, ...]
    relation: Relation | None = None
    third_relation: Relation | None = None
    background: str = "white"
    texture: str = "plain"

    def relations(self) -> tuple[tuple[int, Relation, int], ...]:
        """Every relation the caption states, as (index, relation, index)."""
        stated: list[tuple[int, Relation, int]] = []
        if self.relation:
            stated.append((0, self.relation, 1))
        if self.third_relation:
            stated += [(0, self.third_relation, 2), (1, self.third_relation, 2)]
        return tuple(stated)

    @property
    def held_out(self) -> bool:
        """True for the one scene in twenty that training never draws; evaluation draws only those."""
        return zlib.crc32(repr(self).encode()) % 20 == 0


def sample_scene(rng: random.Random, vocabulary: Vocabulary, held_out: bool = False) -> Scene:
    """Draw a scene from the training distribution, or from the part of it that training never sees."""
    while True:
        count = rng.choices((1, 2, 3), weights=(1, 2, 1))[0]
        things: list[Thing] = []
        while len(things) < count:
            size = rng.choices(tuple(SIZES), weights=(1, 3, 1))[0]
            thing = Thing(rng.choice(vocabulary.shapes), rng.choice(vocabulary.colours), size)
            if all((thing.shape, thing.colour) != (other.shape, other.colour) for other in things):
                things.append(thing)
        relation: Relation | None = None
        third: Relation | None = None
        if count == 2 and rng.random() < 0.9:
            relation = rng.choice(tuple(OPPOSITE))
        if count == 3:
            relation = rng.choice(tuple(OPPOSITE))
            third = rng.choice(("above", "below") if relation in ("left of", "right of") else ("left of", "right of"))
        background = rng.choices(
            vocabulary.backgrounds, weights=[vocabulary.white, *[1] * (len(vocabulary.backgrounds) - 1)]
        )[0]
        texture = rng.choice(("plain", "plain", "striped", "dotted")) if vocabulary.textures else "plain"
        scene = Scene(tuple(things), relation, third, background, texture)
        if scene.held_out == held_out:
            return scene


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """Say a scene in one of several phrasings (the plainest one without `rng`)."""

    def pick(*options: str) -> str:
        return rng.choice(options) if rng else options[0]

    def noun(thing: Thing) -> str:
        words = str(thing)
        if rng and thing.size == "large" and rng.random() < 0.5:
            words = words.replace("large", "big", 1)
        return f"{pick('a', 'a', 'one')} {words}"

    def place(relation: Relation) -> str:
        if relation in ("left of", "right of"):
            return pick(relation, f"to the {relation}")
        return pick(relation, "over" if relation == "above" else "under")

    first, *rest = scene.things
    text = noun(first)
    if rest:
        text += f" {place(scene.relation)} {noun(rest[0])}" if scene.relation else f" and {noun(rest[0])}"
    if len(rest) == 2:
        assert scene.third_relation
        if rng and rng.random() < 0.5:
            where = {"above": "below", "below": "above", "left of": "on the right", "right of": "on the left"}
            text += f", with {noun(rest[1])} {where[scene.third_relation]}"
        else:
            text += f", both {place(scene.third_relation)} {noun(rest[1])}"
    if scene.texture != "plain" or scene.background != "white" or (rng and rng.random() < 0.2):
        style = "" if scene.texture == "plain" else f"{scene.texture} "
        text += f" on a {style}{scene.background} background"
    return text


@dataclass(frozen=True)
class Placed:
    """A thing with its place: centre and circumradius as shares of the picture's side."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


def arrange(scene: Scene, rng: random.Random | None = None) -> list[Placed]:
    """Give every thing a place that satisfies the relations, jittered when `rng` is given."""
    gap = 0.23
    beside: tuple[Relation, ...] = ("left of", "right of")
    side = rng.choice(beside) if rng else "left of"
    pair = DIRECTION[side if scene.relation is None else scene.relation]
    places = (
        [(0.0, 0.0)] if len(scene.things) == 1 else [(pair[0] * gap, pair[1] * gap), (-pair[0] * gap, -pair[1] * gap)]
    )
    if scene.third_relation:
        dx, dy = DIRECTION[scene.third_relation]
        places = [(x + dx * gap, y + dy * gap) for x, y in places] + [(-dx * gap, -dy * gap)]
    spread = 0.10 if len(places) == 1 else 0.03
    placed = []
    for thing, (x, y) in zip(scene.things, places, strict=True):
        jitter = (
            (rng.uniform(-spread, spread), rng.uniform(-spread, spread), rng.uniform(0.94, 1.06)) if rng else (0, 0, 1)
        )
        placed.append(
            Placed(thing.shape, thing.colour, 0.5 + x + jitter[0], 0.5 + y + jitter[1], SIZES[thing.size] * jitter[2])
        )
    return placed


def _distances(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Signed distances to every shape of unit circumradius at (u, v), negative inside.

    u, v: coordinates of shape [...], v downwards. Returns [len(SHAPES), ...]; distances are exact near the edges,
    which is all that anti-aliasing needs.
    """
    import torch

    r = torch.hypot(u, v)
    a, b = u.abs(), v.abs()
    square = torch.maximum(a, b) - 0.84
    triangle = torch.maximum(v - 0.62, (1.62 * a - 0.98 * (v + 1.0)) / math.hypot(1.62, 0.98))
    cross = torch.minimum(torch.maximum(a - 0.95, b - 0.34), torch.maximum(a - 0.34, b - 0.95))
    ring = (r - 0.75).abs() - 0.25
    # Star: fold the angle into one half of one of five points, then a half-plane through tip and notch.
    sector = 2 * math.pi / 5
    angle = ((torch.atan2(u, -v) + sector / 2) % sector - sector / 2).abs()
    notch = (0.46 * math.cos(sector / 2), 0.46 * math.sin(sector / 2))
    edge = (notch[0] - 1, notch[1])
    px, py = r * torch.cos(angle) - 1, r * torch.sin(angle)
    star = (px * -edge[1] + py * edge[0]) / -math.hypot(*edge)
    diamond = (a + b - 1) / math.sqrt(2)
    return torch.stack((r - 1, square, triangle, cross, ring, star, diamond))


def coverage(shape: str, x: float, y: float, radius: float, size: int) -> torch.Tensor:
    """How much of each pixel one shape covers: float32 [size, size] in 0…1."""
    import torch

    grid = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    v, u = torch.meshgrid((grid - y) / radius, (grid - x) / radius, indexing="ij")
    return (0.5 - _distances(u, v)[SHAPES.index(shape)] * radius * size).clamp(0, 1)


def draw(
    scenes: list[list[Placed]],
    backgrounds: list[str],
    size: int,
    device: str | torch.device = "cpu",
    textures: list[str] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a batch of arranged scenes.

    Returns pixels, float32 [batch, 3, size, size] in −1…1, and labels, int64 [batch, size, size]:
    0 for the background, else 1 + shape · len(COLOURS) + colour.
    """
    import torch

    batch, most = len(scenes), max(len(placed) for placed in scenes)
    geometry = torch.ones(batch, most, 3)
    geometry[..., :2] = -9.0  # an absent thing lies far outside
    shape, colour = torch.zeros(batch, most, dtype=torch.long), torch.zeros(batch, most, dtype=torch.long)
    names = tuple(COLOURS)
    for i, placed in enumerate(scenes):
        for j, thing in enumerate(placed):
            geometry[i, j] = torch.tensor((thing.x, thing.y, thing.radius))
            shape[i, j], colour[i, j] = SHAPES.index(thing.shape), names.index(thing.colour)
    geometry, shape, colour = geometry.to(device), shape.to(device), colour.to(device)
    palette = torch.tensor(list(COLOURS.values()), device=device) / 127.5 - 1
    pixels = torch.tensor([BACKGROUNDS[name] for name in backgrounds], device=device) / 127.5 - 1
    pixels = pixels[:, :, None, None].expand(batch, 3, size, size).contiguous()
    grid = (torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size
    if textures and any(texture != "plain" for texture in textures):
        pixels = pixels + _texture(textures, grid)
    labels = torch.zeros(batch, size, size, dtype=torch.long, device=device)
    for j in range(most):
        x, y, radius = (geometry[:, j, k, None, None] for k in range(3))
        u, v = (grid[None, None, :] - x) / radius, (grid[None, :, None] - y) / radius
        distance = _distances(*torch.broadcast_tensors(u, v))
        distance = distance.gather(0, shape[None, :, j, None, None].expand(1, batch, size, size))[0]
        alpha = (0.5 - distance * radius * size).clamp(0, 1)
        pixels = torch.lerp(pixels, palette[colour[:, j], :, None, None].expand_as(pixels), alpha[:, None])
        label = 1 + shape[:, j] * len(COLOURS) + colour[:, j]
        labels = torch.where(alpha > 0.5, label[:, None, None], labels)
    return pixels, labels


def _texture(textures: list[str], grid: torch.Tensor) -> torch.Tensor:
    """Faint stripes or dots to add to a background: float32 [batch, 1, size, size]."""
    import torch

    wave = torch.cos(2 * math.pi * 8 * grid)
    striped = (0.12 * wave.sign())[:, None].expand(len(grid), len(grid))
    dotted = 0.16 * ((wave[:, None] + wave[None, :]) > 1).float()
    kinds = {"plain": torch.zeros_like(dotted), "striped": striped, "dotted": dotted}
    return torch.stack([kinds[name] for name in textures])[:, None]
