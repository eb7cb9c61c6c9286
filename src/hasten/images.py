"""Pictures made of pictures: tensors to images, grids, and reference beside accelerated beside their difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

_BACKGROUND, _INK, _MUTED = (255, 255, 255), (24, 24, 27), (113, 113, 122)


class Panel(NamedTuple):
    """One part of a side-by-side picture: the image, its name, and a line of figures below the name."""

    image: Image.Image
    title: str
    detail: str = ""


def to_pil(pixels: torch.Tensor) -> Image.Image:
    """Pixels of shape (C, H, W) in [0, 1] as an image, rounded exactly as diffusers rounds them."""
    array = (pixels.float().clamp(0, 1).movedim(0, -1).cpu().numpy() * 255).round().astype("uint8")
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def save_png(frames: Sequence[Image.Image], file: object, info: PngInfo | None = None, fps: float = 16) -> None:
    """Write one image, or a film as an animated PNG (lossless, plays in browsers, carries the same text)."""
    film: dict[str, object] = {}
    if len(frames) > 1:
        film = {"save_all": True, "append_images": list(frames[1:]), "duration": round(1000 / fps), "loop": 0}
    frames[0].save(file, "PNG", pnginfo=info, **film)  # type: ignore[arg-type]


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Images in rows, each in a cell of the largest one's size; columns is the square root of the count by default."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), _BACKGROUND)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(to_rgb(image), (column * (width + gap), row * (height + gap)))
    return sheet


def difference(image: Image.Image, reference: Image.Image, gain: float = 10) -> Image.Image:
    """|image − reference| × gain on black, computed in float and cut off at white."""
    from hasten.metrics.fidelity import to_float

    return to_pil((to_float(to_rgb(image)) - to_float(to_rgb(reference))).abs() * gain)


def side_by_side(panels: Sequence[Panel], panel_size: int = 384) -> Image.Image:
    """Panels in a row, each under its title. Small images are enlarged by whole factors: no pixel is invented.

    Args:
        panels: images of one size; titles in Latin letters, since Pillow's own font has no others, and no ×.
        panel_size: wanted width of a panel, in pixels; an image that is larger already keeps its size.
    """
    factor = max(1, round(panel_size / panels[0].image.width))
    width, height = panels[0].image.width * factor, panels[0].image.height * factor
    margin, unit = 16, max(13, width // 22)
    title_font, detail_font = ImageFont.load_default(unit), ImageFont.load_default(unit * 0.8)
    head = round(unit * 2.8) + margin
    sheet = Image.new("RGB", (len(panels) * (width + margin) + margin, head + height + margin), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for index, panel in enumerate(panels):
        left = margin + index * (width + margin)
        draw.text((left, margin * 0.6), panel.title, fill=_INK, font=title_font)
        draw.text((left, margin * 0.6 + unit * 1.35), panel.detail, fill=_MUTED, font=detail_font)
        enlarged = to_rgb(panel.image).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left, head))
    return sheet
