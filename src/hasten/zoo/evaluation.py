"""Whether a model draws what it is told, and whether the checker that says so can be trusted."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasten.metrics.scenes import Reading, Score, match, parse, read, score
from hasten.zoo.scenes import VOCABULARIES, Scene, arrange, caption, draw, sample_scene


@dataclass
class Report:
    """What a check found: shares of prompts, confusion of shapes and colours, and the prompts that went wrong."""

    prompts: int
    shares: dict[str, float]
    shapes: Counter[tuple[str, str]] = field(default_factory=Counter)
    colours: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; confusions as lists of [asked, drawn, count]."""
        return {
            "prompts": self.prompts,
            "shares": self.shares,
            "shapes": [[*pair, count] for pair, count in sorted(self.shapes.items())],
            "colours": [[*pair, count] for pair, count in sorted(self.colours.items())],
            "wrong": self.wrong,
        }


def held_out_prompts(count: int, vocabulary: str = "full", seed: int = 1234) -> list[str]:
    """Captions of scenes that training never draws, in training's mix of one, two and three objects."""
    rng = random.Random(seed)
    return [caption(sample_scene(rng, VOCABULARIES[vocabulary], held_out=True), rng) for _ in range(count)]


def summary(scores: list[Score]) -> dict[str, float]:
    """Shares over many scores: prompts fully right, and what went wrong in the others."""
    count = len(scores)
    related = [s.relations for s in scores if s.relations is not None]
    return {
        "right": sum(s.right for s in scores) / count,
        "objects": sum(s.objects for s in scores) / count,
        "colours": sum(s.colours for s in scores) / count,
        "shapes": sum(s.shapes for s in scores) / count,
        "relations": sum(related) / len(related) if related else float("nan"),
        "background": sum(s.background for s in scores) / count,
        "nothing extra": sum(s.extra == 0 for s in scores) / count,
    }


def check_drawn(count: int, vocabulary: str = "full", seed: int = 0, pictures: Path | None = None) -> Report:
    """Measure the checker itself on scenes drawn from known captions, at the native size."""
    rng = random.Random(seed)
    scenes = [sample_scene(rng, VOCABULARIES[vocabulary]) for _ in range(count)]
    captions = [caption(scene, rng) for scene in scenes]
    pixels = [draw([arrange(s, rng)], [s.background], 128, textures=[s.texture])[0][0] for s in scenes]
    images = [_to_image(picture) for picture in pixels]
    return _report(captions, images, pictures)


def check_model(
    model: str,
    count: int,
    vocabulary: str = "full",
    device: str = "auto",
    steps: int | None = None,
    seed: int = 0,
    pictures: Path | None = None,
    batch: int = 8,
) -> Report:
    """Generate a picture for each of `count` held-out prompts with nothing skipped and read them.

    Raises LoadError or DeviceError when the model or the device is not there.
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from hasten.loading import load
    from hasten.models import locate, native_settings
    from hasten.plan import load_plan

    pipe = load(load_plan({"model": model, "device": device}))
    native = native_settings(locate(model)).model_dump(exclude_none=True)
    negative = native.pop("negative_prompt", " ")
    if steps:
        native["num_inference_steps"] = steps
    prompts = held_out_prompts(count, vocabulary)
    images: list[Any] = []
    for start in track(range(0, count, batch), "generating", console=Console(stderr=True)):
        chunk = prompts[start : start + batch]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(chunk))]
        images += pipe(prompt=chunk, negative_prompt=[negative] * len(chunk), generator=generators, **native).images
    return _report(prompts, images, pictures)


def _report(prompts: list[str], images: list[Any], pictures: Path | None) -> Report:
    readings = [read(image) for image in images]
    scores = [score(prompt, reading) for prompt, reading in zip(prompts, readings, strict=True)]
    report = Report(len(prompts), summary(scores))
    for prompt, reading, result in zip(prompts, readings, scores, strict=True):
        _confuse(report, parse(prompt), reading)
        if not result.right:
            shown = ", ".join(f"{thing.colour} {thing.shape}" for thing in reading.objects) or "nothing"
            report.wrong.append(f"{prompt} → {shown} on {reading.background}")
    if pictures:
        _contact_sheet(images).save(pictures)
    return report


def _confuse(report: Report, scene: Scene, reading: Reading) -> None:
    """Count asked → drawn for each thing of a scene."""
    for thing, found in zip(scene.things, match(scene, reading.objects), strict=True):
        report.shapes[thing.shape, found.shape if found else "nothing"] += 1
        if found:
            report.colours[thing.colour, found.colour] += 1


def _to_image(pixels: Any) -> Any:
    from PIL import Image

    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def _contact_sheet(images: list[Any], columns: int = 10) -> Any:
    from PIL import Image

    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
